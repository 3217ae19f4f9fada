"""The model card of an export. Its first code block is executed by the export check, so it can be relied on."""

import json
import re
from typing import Any

TOKENIZE = '''```python
from transformers import AutoTokenizer

path = "{path}"
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

# {name}

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

SGLang (`python -m sglang.launch_server --model-path {path} --is-embedding`; use `/classify`, not `/v1/classify`):

```python
import requests

answer = requests.post("http://127.0.0.1:30000/classify", json={{"input_ids": [conversation_ids(conversation)]}}).json()
reward = answer[0]["embedding"][0]
```

vLLM (`vllm serve {path} --runner pooling`):

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
| learning rate | {learning_rate}, {schedule} |
| precision | {precision} |
| reward is read at | the last token of the rendered conversation, {last_token} |

### Held-out pairs

{metrics}

### Data

{sources}

### Recipe

```yaml
{recipe}```
"""

BIAS_NOTE = """
`score.bias` in the weights is zero and is there for SGLang, whose Qwen3 classifier has a bias that it would otherwise
leave at random values. transformers reports it as UNEXPECTED; that is harmless.
"""


def model_card(facts: dict[str, Any]) -> str:
    """README.md of an export. `facts` are the fields of `CARD`, with `metrics` and `report` still as mappings."""
    fields = dict(facts)
    fields["tokenize"] = TOKENIZE.replace("{path}", str(facts["path"]))
    fields["metrics"] = _metrics_table(facts["metrics"])
    fields["sources"] = _sources_table(facts["report"], facts["commits"])
    return CARD.format(**fields)


def tokenize_block(card: str, path: str) -> str:
    """The code of a card's first block, with `path` for the path it names."""
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None, "a model card has a python block"
    return re.sub(r'^path = ".*"$', lambda _: f"path = {json.dumps(path)}", found[1], count=1, flags=re.MULTILINE)


def _metrics_table(metrics: dict[str, float]) -> str:
    names = sorted(
        {key.split("/")[1] for key in metrics if key.startswith("eval/")}, key=lambda name: (name == "all", name)
    )
    if not names:
        return "No pairs were held out."
    rows = ["| source | pairs | accuracy | loss | margin |", "|---|---|---|---|---|"]
    for name in names:
        m = {key: metrics[f"eval/{name}/{key}"] for key in ("pairs", "accuracy", "loss", "margin")}
        rows.append(f"| {name} | {m['pairs']:.0f} | {m['accuracy']:.4f} | {m['loss']:.4f} | {m['margin']:.3f} |")
    return "\n".join(rows)


def _sources_table(report: dict[str, Any], commits: dict[str, str]) -> str:
    rows = ["| source | rows | trained on | held out | refused | hub commit |", "|---|---|---|---|---|---|"]
    for name, entry in report.items():
        counts = [entry["rows"], entry["trained"], entry["held_out"], sum(entry["refused"].values())]
        rows.append(f"| {name} | {' | '.join(map(str, counts))} | {commits.get(name, '-')} |")
    return "\n".join(rows)
