"""A byte-level tokenizer made on the spot, with chat templates in the styles of well-known families."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minidist.config.data import RenderConfig
from minidist.data.rendering import Renderer
from tests.support.tokenizers import TEMPLATES

_TOOLS = "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
_CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"


def chat_tokenizer(template: str | None = "chatml") -> PreTrainedTokenizerBase:
    """One token a byte, and the special tokens of the template's family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    if template is not None:
        text, tokens = TEMPLATES[template]
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
        text = text.replace("{{ m['content'] }}<|im_end|>", f"{{{{ m['content'] }}}}{_CALLS}<|im_end|>")
        tokenizer.chat_template = _TOOLS + text
    return tokenizer


def chat_renderer(template: str | None = "chatml") -> Renderer:
    return Renderer(chat_tokenizer(template), RenderConfig())
