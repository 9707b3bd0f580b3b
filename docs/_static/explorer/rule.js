// The rules of the explorer, in integers alone. A test compares each answer with the
// library's on the table of cases that the build of the documentation writes.
"use strict";

const explorerRule = (() => {
  const TEXT = 0, SLOW = 1, FAST = 2;

  const floorDiv = (a, b) => (a - (a % b)) / b;
  const ceilDiv = (a, b) => floorDiv(a + b - 1, b);

  // Which frames of a clip are slow; the ratio is n / d.
  function slowFrames(frames, [n, d], strategy) {
    const count = ceilDiv(frames * n, d);
    const every = Array.from({ length: frames }, (_, t) => t);
    if (strategy === "interleave")
      return every.map((t) => ceilDiv((t + 1) * n, d) > ceilDiv(t * n, d));
    if (strategy === "first_slow") return every.map((t) => t < count);
    if (strategy === "last_slow") return every.map((t) => t >= frames - count);
    const chosen = spread(floorDiv(2 * frames * n + d, 2 * d), frames);
    return every.map((t) => chosen.has(t));
  }

  // `count` frames from first to last, as evenly as integers allow.
  function spread(count, frames) {
    if (count < 2) return new Set(count ? [0] : []);
    const gaps = count - 1, last = frames - 1;
    const places = Array.from({ length: count }, (_, i) => i);
    return new Set(places.map((i) => floorDiv(2 * i * last + gaps, 2 * gaps)));
  }

  // Frames of each packed sample: sample k has a k-th of them, rounded up.
  function sampleFrames({ frames, samples }) {
    return Array.from({ length: samples }, (_, k) => ceilDiv(frames, k + 1));
  }

  // Every token of the row: its kind, segment, frame (-1 is text) and causal rank.
  function layOut(settings) {
    const row = { kinds: [], segments: [], frames: [], ranks: [], clips: [] };
    sampleFrames(settings).forEach((frames, segment) => {
      const isSlow = slowFrames(frames, settings.ratio, settings.strategy);
      const begin = row.kinds.length;
      let rank = 0;
      const add = (count, kind, frame) => {
        for (let i = 0; i < count; i++) {
          row.kinds.push(kind);
          row.segments.push(segment);
          row.frames.push(frame);
          const index = row.kinds.length - 1 - begin;
          row.ranks.push(settings.attention === "causal" ? index : rank);
          if (kind === TEXT) rank++;
        }
        if (kind !== TEXT) rank++;
      };
      add(settings.text_before, TEXT, -1);
      const clip = isSlow.map((slow, t) => {
        const stride = slow ? settings.slow_stride : settings.fast_stride;
        const grid = [ceilDiv(settings.height, stride), ceilDiv(settings.width, stride)];
        const start = row.kinds.length;
        add(grid[0] * grid[1], slow ? SLOW : FAST, t);
        return { slow, stride, grid, start, tokens: grid[0] * grid[1] };
      });
      row.clips.push(clip);
      add(settings.text_after, TEXT, -1);
    });
    return row;
  }

  // Query q reads key k when start[q] <= k < stop[q], and, where keys are kept beyond
  // the window, also when kept[k] and first[q] <= k < start[q].
  function intervals(row, settings) {
    const tokens = row.kinds.length;
    const first = [], start = [], stop = new Array(tokens), clocks = [];
    for (let q = 0; q < tokens; q++) {
      const begins = q === 0 || row.segments[q] !== row.segments[q - 1];
      first.push(begins ? q : first[q - 1]);
      clocks.push(Math.max(begins ? 0 : clocks[q - 1], row.frames[q] + 1));
      let key = begins ? q : start[q - 1];
      while (settings.window && clocks[key] <= clocks[q] - settings.window) key++;
      start.push(key);
    }
    for (let q = tokens - 1; q >= 0; q--) {
      const ends = q === tokens - 1 || row.segments[q] !== row.segments[q + 1]
        || row.ranks[q] !== row.ranks[q + 1];
      stop[q] = ends ? q + 1 : stop[q + 1];
    }
    const kept = row.kinds.map((kind, k) => Number(
      settings.window > 0 && (kind === TEXT
        ? settings.keep_text === "all"
          || (settings.keep_text === "prefix" && clocks[k] === 0)
        : kind === SLOW && settings.keep_slow)));
    return { first, start, stop, kept };
  }

  function countPairs({ first, start, stop, kept }) {
    const before = [0];
    for (const one of kept) before.push(before[before.length - 1] + one);
    return start.reduce(
      (sum, key, q) => sum + stop[q] - key + before[key] - before[first[q]], 0);
  }

  // Everything that the page draws or says.
  function plan(settings) {
    const row = layOut(settings);
    const visible = intervals(row, settings);
    const cells = settings.height * settings.width;
    return {
      ...row,
      ...visible,
      tokens: row.kinds.length,
      pairs: countPairs(visible),
      unpooled: cells * row.clips.flat().length,
      pooled: row.kinds.filter((kind) => kind !== TEXT).length,
    };
  }

  function reads({ first, start, stop, kept }, q, k) {
    return k < stop[q] && (k >= start[q] || (kept[k] === 1 && k >= first[q]));
  }

  return { TEXT, SLOW, FAST, ceilDiv, plan, reads, sampleFrames };
})();
