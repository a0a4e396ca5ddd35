"""Estimates of a divergence from the sampled token alone: log-probabilities [N] and [N] to [N].

Only k2 is provided, because only its gradient is that of the reverse KL. Over tokens sampled from the student, the expected
gradient of k1 = log q - log p is zero, and that of k3 = p/q - 1 - log(p/q) is the forward KL's.
"""

from torch import Tensor


def k2(student_N: Tensor, teacher_N: Tensor) -> Tensor:
    """Half the squared log-ratio of each sampled token: (log q - log p)^2 / 2, p the teacher, q the student.

    Its gradient (log q - log p) * d log q is, in expectation over tokens sampled from q, exactly that of KL(student ||
    teacher) at that position. The value is not a divergence in nats: as an estimate of the KL it is biased.

    Args:
        student_N: the student's log-probabilities of the tokens it sampled, [N], nats.
        teacher_N: the teacher's log-probabilities of the same tokens, [N], nats; no gradient reaches them.

    Returns:
        [N], squared nats, not negative.

    Example:
        >>> k2(Tensor([-1.0]), Tensor([-3.0])).item()
        2.0

    Source: Schulman, Approximating KL divergence (2020), http://joschu.net/blog/kl-approx.html; as a loss, Xu et al., KDRL,
    arXiv:2506.02208.
    """
    return (student_N - teacher_N.detach()).square() / 2
