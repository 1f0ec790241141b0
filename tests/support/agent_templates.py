"""Chat templates for tools and thoughts, as families write them, shortened to what training meets.

FAMILIES: the template and the end of a sequence of each.
"""

from functools import cache

from support.chat_templates import GEMMA, LLAMA3
from support.data_tokenizers import tokenizer
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

_SYSTEM_AND_TOOLS = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% if tools %}{{ '<|im_start|>system\n' + system + '# Tools\n<tools>' }}"
    "{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}{{ '\n</tools><|im_end|>\n' }}"
    "{% elif system %}{{ '<|im_start|>system\n' + system + '<|im_end|>\n' }}{% endif %}"
)
_CALLS = (
    "{% for call in m.tool_calls or [] %}"
    "{% if loop.index0 or text %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' +'
    " call.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}"
)
_RESULT = (
    "{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}"
    "{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

QWEN2_5 = (
    _SYSTEM_AND_TOOLS + "{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + (text or '') }}"
    + _CALLS
    + "{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}"
    + _RESULT
    + "{% endif %}{% endfor %}"
    + _PROMPT
)
_QWEN3 = (
    _SYSTEM_AND_TOOLS + "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' and not m.content.startswith('<tool_response>') %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set text = m.content if m.content is string else '' %}"
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{% set thought = m.reasoning_content or '' %}"
    "{% if not thought and '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}GENERATED"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') }}"
    "{% else %}{{ text }}{% endif %}" + _CALLS + "{{ '<|im_end|>\n' }}END"
    "{% elif m.role == 'tool' %}" + _RESULT + "{% endif %}{% endfor %}" + _PROMPT
)
QWEN3 = _QWEN3.replace("GENERATED", "").replace("END", "")
MARKED = (
    _QWEN3.replace("GENERATED", "{% generation %}")
    .replace("END", "{% endgeneration %}")
    .replace("loop.index0 > ns.last and (loop.last or thought)", "thought")
)
LLAMA3_1 = (
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{% if tools %}{{ 'Environment: ipython\n' }}{% endif %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}"
    "{% set messages = messages[1:] %}{% endif %}{{ '<|eot_id|>' }}"
    "{% for m in messages %}"
    "{% if loop.first and tools %}{{ '<|start_header_id|>user<|end_header_id|>\n\n' }}"
    "{% for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}"
    "{{ m.content | trim + '<|eot_id|>' }}"
    "{% elif m.tool_calls %}{% if m.tool_calls | length > 1 %}"
    "{{ raise_exception('single tool calls only') }}{% endif %}"
    "{% set call = m.tool_calls[0].function %}"
    '{{ \'<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "\' + call.name +'
    " '\", \"parameters\": ' + call.arguments | tojson + '}<|eot_id|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' +"
    " m.content | tojson + '<|eot_id|>' }}"
    "{% else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim +"
    " '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and m == users[-1] %}"
    "{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST]' + (system if loop.last else '') + m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for call in m.tool_calls %}"
    "{% if call.id is not defined or call.id | length != 9 %}"
    "{{ raise_exception('ids need 9 characters') }}{% endif %}"
    "{{ (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' }}"
    "{{ ', ' if not loop.last }}{% endfor %}{{ ']' + eos_token }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + m.tool_call_id +"
    " '[/TOOL_RESULTS]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
GPT_OSS = (
    "{{ '<|start|>system<|message|>' + strftime_now('%Y-%m-%d') + '<|end|>' }}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% if system or tools %}{{ '<|start|>developer<|message|>' + system }}"
    "{% for tool in tools or [] %}{{ 'type ' + tool.function.name + ' = any;\n' }}{% endfor %}"
    "{{ '<|end|>' }}{% endif %}{% set ns = namespace(name='') %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if 'tool_calls' in m %}{% set later = namespace(final=false) %}"
    "{% for n in messages[loop.index:] %}{% if n.role == 'assistant' and 'tool_calls' not in n %}"
    "{% set later.final = true %}{% endif %}{% endfor %}"
    "{% set call = m.tool_calls[0].function %}{% set ns.name = call.name %}"
    "{% if m.content or m.thinking %}{% if not later.final %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + (m.content or m.thinking) +"
    " '<|end|>' }}{% endif %}{% endif %}"
    "{{ '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' +"
    " call.arguments | tojson + '<|call|>' }}"
    "{% elif loop.last and not add_generation_prompt %}{% if 'thinking' in m %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    "{% endif %}{% elif m.role == 'tool' %}"
    "{{ '<|start|>functions.' + ns.name + ' to=assistant<|channel|>commentary<|message|>' +"
    " m.content | tojson + '<|end|>' }}"
    "{% else %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% set ns = namespace(tool=false) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.tool = false %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' and m.content is none %}{{ '<|Assistant|>' }}"
    "{% for call in m.tool_calls %}{{ '<|call|>' + call.function.name + '\n' +"
    " call.function.arguments + '\n' }}{% endfor %}{{ eos_token }}{% set ns.tool = true %}"
    "{% elif m.role == 'assistant' %}{{ '' if ns.tool else '<|Assistant|>' }}"
    "{{ m.content.split('</think>')[-1] + eos_token }}"
    "{% elif m.role == 'tool' %}{% set ns.tool = true %}{{ '<|message|>' + m.content }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt and not ns.tool %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content +"
    " '\n\n' %}{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' +"
    " (first if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|message|>' + m.content +"
    " '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|message|>' }}{% endif %}"
)

FAMILIES = {
    "llama 3": (LLAMA3, "<|eot_id|>"),
    "llama 3.1": (LLAMA3_1, "<|eot_id|>"),
    "qwen 2.5": (QWEN2_5, "<|im_end|>"),
    "qwen 3": (QWEN3, "<|im_end|>"),
    "marked": (MARKED, "<|im_end|>"),
    "mistral": (MISTRAL, "</s>"),
    "gemma 2": (GEMMA, "</s>"),
    "gemma 3": (GEMMA3, "</s>"),
    "phi 4": (PHI4, "<|im_end|>"),
    "gpt-oss": (GPT_OSS, "<|return|>"),
    "deepseek r1": (DEEPSEEK_R1, "</s>"),
}

CONTROLS = [
    *("<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|start|>", "<|end|>"),
    *("<|return|>", "<|channel|>", "<|message|>", "<|call|>", "<|eot_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]"),
    *("[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    "[/TOOL_RESULTS]",
]
ORDINARY = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "</think>"]


@cache
def family(name):
    """A byte-level tokenizer with the family's template and control tokens."""
    template, eos = FAMILIES[name]
    backend = Tokenizer.from_str(tokenizer("byte").backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROLS])
    backend.add_tokens([AddedToken(text, normalized=False) for text in ORDINARY])
    found = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos)
    found.chat_template = template
    return found
