// What the stand-in says when no test scripted it.

import { CORPUS } from "./xss.mjs";

export const MARKDOWN = `# Heading one

A paragraph with **bold**, *italic*, ~~struck~~ and \`inline code\`, and a [link](https://example.com/a?b=1).

## A list

1. First
2. Second
   - nested *one*
   - nested two

> A quotation that runs
> over two lines.

| Stage | Steps | val bpb |
|:------|------:|:-------:|
| base  |   700 |  0.399  |
| sft   |   250 |  0.411  |

---

Done.`;

export const CODE = `Here is the norm in Python:

\`\`\`python
def norm(x, eps=1e-6):
    """Rows of x, each divided by its root mean square."""
    ms = (x * x).mean(axis=-1, keepdims=True)
    return x / (ms + eps) ** 0.5  # no gain
\`\`\`

and the same in Rust:

\`\`\`rust
fn norm(x: &mut [f32], eps: f32) {
    let ms = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (ms + eps).sqrt();
    x.iter_mut().for_each(|v| *v *= scale);
}
\`\`\`

Both divide by the root of the mean square.`;

const STORIES = [
  "A fox lived at the edge of a pine wood. Each evening she counted the lamps of the village, and each evening there was one fewer. On the last night she carried a lamp of her own up the hill.",
  "There was a fox who could not cross the river. A heron told him to wait for the ice. He waited until spring, and by then he had forgotten what he wanted on the other side.",
  "The old fox kept a map of every hen house she had not robbed. It was, she said, the longest list in the wood, and she was proud of it.",
  "Once a fox found a red hat in the snow. He wore it to the mill, where the miller's goat took it for a leaf and ate it. They have been friends since.",
];

const SUM = /(\d+)\s*([-+*])\s*(\d+)/;

export function answerTo(ask) {
  const said = ask.messages.at(-1)?.content ?? "";
  const word = said.toLowerCase();
  if (word.includes("busy")) return { error: { status: 429, retryAfter: 3 } };
  if (word.includes("xss")) return { text: CORPUS.join("\n\n"), delay: 0 };
  if (word.includes("markdown")) return { text: MARKDOWN };
  if (word.includes("code")) return { text: CODE };
  if (word.includes("slow")) return { text: STORIES.join(" "), delay: 120 };
  if (word.includes("story"))
    return { samples: STORIES.map((text, i) => STORIES[(i + said.length) % 4]), delay: 15 };
  const sum = SUM.exec(said);
  if (sum) {
    const [, a, sign, b] = sum;
    const value = { "+": (x, y) => x + y, "-": (x, y) => x - y, "*": (x, y) => x * y }[sign](
      Number(a),
      Number(b),
    );
    return {
      delay: 30,
      deltas: [
        { content: `Let me work it out: ${a} ${sign} ${b} is ` },
        { nanochat: { tool_call: `${a}${sign}${b}` } },
        { nanochat: { tool_output: String(value) } },
        { content: `${value}.` },
      ],
    };
  }
  return { text: `You said: ${said.slice(0, 200)}. I am a small model and have little to add.` };
}
