"""Final answers: where they stand in a reply, and when two of them are the same."""

import re
from collections.abc import Callable
from decimal import Decimal
from string import punctuation

_MARKS = re.compile(r"(?:####|\banswer(?: is|:)|\bmost consistent response is)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)])[-−])?[$€£¥]?(?:(?P<whole>\d{1,9}) (?=\d+/\d))?"
    r"(?P<value>\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d{1,2}(?!\d))?|(?<!\w)\.\d+)(?:/(?P<below>\d{1,9}))?"
)
_OPTION = re.compile(r"\(?\b([A-Z])\b\)?")


def final_answer(reply: str) -> str:
    r"""The answer at the end of a reply that writes its steps first, as one line; empty where nothing follows the last mark.

    The last of \boxed{...}, "#### ...", "the answer is ..." and "answer: ..."; without any, the last line that is not empty.

    >>> final_answer("2 + 3 = 5. The answer is 5."), final_answer("so\n#### 1,200")
    ('5', '1,200')
    """
    if boxed := _BOXED.findall(reply):
        return boxed[-1].strip()
    *_, last = [0, *(match.end() for match in _MARKS.finditer(reply))]
    lines = [line.strip() for line in reply[last:].splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[0] if last else lines[-1]
    return line.lstrip(": ").removesuffix(".").strip()


def _text(answer: str) -> str:
    """Without case, punctuation at both ends, articles and repeated blanks."""
    words = answer.casefold().strip(punctuation + " \n\t").split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _number(answer: str) -> str:
    """The last number of an answer, without separators, signs of currency and zeros that say nothing: 1,200.50 is 1200.5, and
    1 1/2 is 1.5. A sign that follows a digit is one of subtraction."""
    found = list(_NUMBER.finditer(answer))
    if not found:
        return ""
    last = found[-1]
    value = Decimal(last["value"].replace(",", ""))
    if last["below"] is not None:
        if not int(last["below"]):
            return last[0]
        value = value / int(last["below"]) + int(last["whole"] or 0)
    return format((-value if last["minus"] else value).normalize() + 0, "f")


def _yes_no(answer: str) -> str:
    """yes or no, whichever word comes first; empty without either."""
    found = re.search(r"\b(yes|no)\b", answer.casefold())
    return "" if found is None else found[1]


def _option(answer: str) -> str:
    """The last option letter that stands alone: "(B)", "B.", "option B"; empty without one."""
    found = _OPTION.findall(answer)
    return found[-1] if found else ""


NORMALISERS: dict[str, Callable[[str], str]] = {
    "exact": str.strip,
    "text": _text,
    "number": _number,
    "yes_no": _yes_no,
    "option": _option,
}
"""How an answer is brought to the form in which answers are compared, by the name of their kind. An empty form is no answer."""
