"""The model card of an export. The code of its first block is what the export check executes, so it can be relied on.

Names, paths, the recipe and tokens are text from outside: each is quoted for the place where it stands.
"""

import json
import shlex
from typing import Any

import yaml

from data.common.text import cell, code, fenced

TOKENIZE = '''```python
from transformers import AutoTokenizer

path = {path}
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def conversation_ids(conversation):
    """Token ids as in training: no system prompt added, one BOS at most. The reward is read at the last one."""
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    tokens = tokenizer("x").tokens()
    for token in tokens[: tokens.index(tokenizer.tokenize("x")[0])]:  # a BOS that the tokenizer adds itself, or none
        text = text.removeprefix(token)
    return tokenizer(text)["input_ids"]
```'''

CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, bradley-terry]
base_model: {base}
---

# {title}

A Bradley-Terry reward model: one scalar for a conversation that ends with an assistant's answer; the higher, the
better. Only differences between answers to the same prompt carry meaning.

## Scoring

Token ids first, for every engine the same:

{tokenize}

transformers:

```python
import torch
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained(path)  # dtype=torch.float32 for the last digits
conversation = [{{"role": "user", "content": "What is 2+2?"}}, {{"role": "assistant", "content": "4"}}]
with torch.no_grad():
    reward = model(torch.tensor([conversation_ids(conversation)])).logits[0, 0].item()
```

SGLang ({sglang}; use `/classify`, not `/v1/classify`):

```python
import requests

answer = requests.post("http://127.0.0.1:30000/classify", json={{"input_ids": [conversation_ids(conversation)]}}).json()
reward = answer[0]["embedding"][0]
```

vLLM ({vllm}):

```python
answer = requests.post(
    "http://127.0.0.1:8000/classify", json={{"model": path, "input": [conversation_ids(conversation)]}}
).json()
reward = answer["data"][0]["probs"][0]  # the raw reward: config.json says problem_type=regression
```

`reward_model.json` holds reference conversations as token ids with their float32 rewards: compare with them what your
engine returns. Plain bfloat16 scoring differed from them by at most {drift}.
{bias_note}
## Training

| | |
|---|---|
| base | {base_line} |
| pairs trained on | {pairs} |
| steps | {steps} |
| pairs per step | {pairs_per_step} |
{begins_at}| learning rate | {learning_rate}, {schedule} |
| precision | {precision} |
| reward is read at | the last token of the rendered conversation, {last_token} |

### Held-out pairs

{metrics}

### Data

{sources}

### Recipe

{recipe}
"""

BIAS_NOTE = """
`score.bias` in the weights is zero and is there for SGLang, whose Qwen3 classifier has a bias that it would otherwise
leave at random values. transformers reports it as UNEXPECTED; that is harmless.
"""


def model_card(facts: dict[str, Any]) -> str:
    """README.md of an export. `facts` are the fields of `CARD` as plain values, `metrics` and `report` as mappings."""
    path = shlex.quote(str(facts["path"]))
    fields = {key: facts[key] for key in ("steps", "pairs", "pairs_per_step", "learning_rate", "bias_note", "drift")}
    fields |= {key: cell(facts[key]) for key in ("base_line", "schedule", "precision")}
    fields["begins_at"] = f"| begins at | {cell(facts['begins_at'])} |\n" if facts["begins_at"] else ""
    fields["base"] = _yaml_text(facts["base"])
    fields["title"] = cell(facts["name"])
    fields["tokenize"] = TOKENIZE.replace("{path}", _python_text(facts["path"]))
    fields["sglang"] = code(f"python -m sglang.launch_server --model-path {path} --is-embedding")
    fields["vllm"] = code(f"vllm serve {path} --runner pooling")
    fields["last_token"] = ", ".join(code(repr(token), in_table=True) for token in facts["last_tokens"])
    fields["metrics"] = _metrics_table(facts["metrics"])
    fields["sources"] = _sources_table(facts["report"], facts["commits"])
    fields["recipe"] = fenced(facts["recipe"], "yaml")
    return CARD.format(**fields)


def snippet_code() -> str:
    """The code of a card's first block without its line `path = ...`: a constant, to be run with `path` set."""
    block = TOKENIZE.removeprefix("```python\n").removesuffix("```")
    before, line, after = block.partition("path = {path}\n")
    assert line, "the card's first block names the export's path in a line of its own"
    return before + after


def _python_text(value: Any) -> str:
    # No JSON escapes: those of characters beyond 2^16 would be two characters in Python.
    return json.dumps(str(value), ensure_ascii=False) if str(value).isprintable() else ascii(str(value))


def _yaml_text(value: Any) -> str:
    """A name, in quotes where YAML would read it as something else."""
    try:
        plain = yaml.safe_load(f"key: {value}\n") == {"key": value}
    except yaml.YAMLError:
        plain = False
    quoted = yaml.safe_dump(str(value), default_style='"', allow_unicode=True, width=2**20)
    return str(value) if plain else quoted.strip()


def _metrics_table(metrics: dict[str, float]) -> str:
    names = sorted({key.split("/")[1] for key in metrics if key.startswith("eval/")}, key=lambda n: (n == "all", n))
    if not names:
        return "No pairs were held out."
    rows = ["| source | pairs | accuracy | loss | margin |", "|---|---|---|---|---|"]
    for name in names:
        m = {key: metrics[f"eval/{name}/{key}"] for key in ("pairs", "accuracy", "loss", "margin")}
        rows.append(f"| {cell(name)} | {m['pairs']:.0f} | {m['accuracy']:.4f} | {m['loss']:.4f} | {m['margin']:.3f} |")
    return "\n".join(rows)


def _sources_table(report: dict[str, Any], commits: dict[str, str]) -> str:
    rows = ["| source | rows | to train on | held out | refused | hub commit |", "|---|---|---|---|---|---|"]
    for name, entry in report.items():
        counts = [entry["rows"], entry["trained"], entry["held_out"], sum(entry["refused"].values())]
        rows.append(f"| {cell(name)} | {' | '.join(map(str, counts))} | {cell(commits.get(name, '-'))} |")
    return "\n".join(rows)
