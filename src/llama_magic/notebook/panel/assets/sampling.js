// What llama.cpp's samplers do to a distribution: top-k, top-p, min-p and temperature, in its default order.
// The formulas are those of src/llama-sampler.cpp; a test compares the result with llama.cpp itself.

// `logits`: of the whole vocabulary, the highest first. Returns how many candidates each stage leaves, the number that
// is left in the end, raw and final probabilities of the first `shown` candidates, and what took out each of them.
export function stages(logits, { temperature, top_k, top_p, min_p }, shown = 40) {
  const peak = logits[0];
  let left = logits.length;
  const steps = [{ stage: "all", left }];
  const note = (stage) => steps.push({ stage, left });

  if (top_k > 0) left = Math.min(top_k, left);
  note("top-k");

  if (top_p < 1) {
    let total = 0;
    for (let i = 0; i < left; i += 1) total += Math.exp(logits[i] - peak);
    let sum = 0;
    for (let i = 0; i < left; i += 1) {
      sum += Math.exp(logits[i] - peak) / total;
      if (sum >= top_p) {
        left = i + 1;
        break;
      }
    }
  }
  note("top-p");

  if (min_p > 0) {
    const least = peak + Math.log(min_p);
    let kept = 1;
    while (kept < left && logits[kept] >= least) kept += 1;
    left = kept;
  }
  note("min-p");

  const scale = temperature > 0 ? temperature : 0;
  if (!scale) left = 1;
  note("temperature");

  let total = 0;
  for (let i = 0; i < left; i += 1) total += scale ? Math.exp((logits[i] - peak) / scale) : 1;
  let raw = 0;
  for (let i = 0; i < logits.length; i += 1) raw += Math.exp(logits[i] - peak);

  const count = Math.min(shown, logits.length);
  const before = new Array(count);
  const after = new Array(count);
  const takenBy = new Array(count);
  for (let i = 0; i < count; i += 1) {
    before[i] = Math.exp(logits[i] - peak) / raw;
    after[i] = i < left ? (scale ? Math.exp((logits[i] - peak) / scale) : 1) / total : 0;
    takenBy[i] = i < left ? "" : steps.find((step) => i >= step.left).stage;
  }
  return { steps, left, before, after, takenBy };
}

export function percent(share) {
  const value = 100 * share;
  if (value >= 9.95) return `${value.toFixed(0)} %`;
  return value >= 0.1 ? `${value.toFixed(1)} %` : value > 0 ? "<0.1 %" : "0 %";
}
