// Draws what the rule says. The settings live in the form and in the page's address.
"use strict";

(() => {
  const { TEXT, SLOW, plan: makePlan, reads } = explorerRule;
  const KINDS = ["text", "slow", "fast"];
  const RATIOS = fractions(8);
  const find = (name) => document.getElementById(`explorer-${name}`);
  const form = find("controls"), counts = find("counts"), said = find("query");
  const schedule = find("schedule"), strip = find("strip"), mask = find("mask");
  const controls = [...form.elements].filter((control) => control.name);

  let settings, plan, colours;
  let query = null; // index of the token whose keys are lit; null lights all
  let pinned = null; // the one that stays lit when the mouse leaves
  let places = { strip: null, mask: null, schedule: [] }; // where tokens were drawn

  // All fractions from 0 to 1 with denominators up to `most`, in order.
  function fractions(most) {
    const found = [];
    for (let d = 1; d <= most; d++)
      for (let n = 0; n <= d; n++)
        if (!found.some(([a, b]) => a * d === n * b)) found.push([n, d]);
    return found.sort(([a, b], [c, d]) => a * d - c * b);
  }

  // ---- Settings: form, address, words -------------------------------------------

  function readForm() {
    const values = controls.map((control) => [
      control.name,
      control.type === "checkbox" ? control.checked
        : control.type === "range" ? Number(control.value) : control.value,
    ]);
    const found = Object.fromEntries(values);
    return { ...found, ratio: RATIOS[found.ratio] };
  }

  // What a control is called in the address.
  function written(control) {
    if (control.name === "ratio") return RATIOS[control.value].join("/");
    return control.type === "checkbox" ? String(Number(control.checked)) : control.value;
  }

  function write(control, word) {
    if (control.name === "ratio") {
      const index = RATIOS.findIndex((ratio) => ratio.join("/") === word);
      if (index >= 0) control.value = index;
    } else if (control.type === "checkbox") control.checked = word === "1";
    else if (control.type === "range") {
      if (/^\d+$/.test(word)) control.value = word; // the browser keeps it in range
    } else if ([...control.options].some((option) => option.value === word))
      control.value = word;
  }

  function readAddress() {
    const words = new URLSearchParams(location.hash.slice(1));
    for (const control of controls) {
      write(control, standard.get(control.name));
      if (words.has(control.name)) write(control, words.get(control.name));
    }
    pinned = /^\d+$/.test(words.get("query")) ? Number(words.get("query")) : null;
    query = pinned;
    orderStrides(form.elements.slow_stride);
  }

  let waiting;
  function writeAddress() {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const words = controls
        .filter((control) => written(control) !== standard.get(control.name))
        .map((control) => `${control.name}=${written(control)}`);
      if (pinned !== null) words.push(`query=${pinned}`);
      history.replaceState(null, "", `#${words.join("&")}`);
    }, 150);
  }

  // A fast frame keeps no more tokens than a slow one: the other slider gives way.
  function orderStrides(moved) {
    const { slow_stride: slow, fast_stride: fast } = form.elements;
    if (Number(fast.value) >= Number(slow.value)) return;
    if (moved === fast) slow.value = fast.value;
    else fast.value = slow.value;
  }

  function describeControls() {
    for (const control of controls) {
      const shown = control.parentElement.querySelector("b");
      if (!shown) continue;
      const words = control.name === "window" && !settings.window ? "none"
        : written(control);
      shown.textContent = words;
      control.setAttribute("aria-valuetext", words);
    }
    const { keep_text: text, keep_slow: slow } = form.elements;
    text.disabled = slow.disabled = !settings.window;
  }

  // ---- What is said -------------------------------------------------------------

  const number = (value) => value.toLocaleString("en");

  function nameToken(index) {
    const kind = plan.kinds[index];
    const sample = settings.samples > 1 ? ` of sample ${plan.segments[index] + 1}` : "";
    const what = kind === TEXT ? "text" : `${KINDS[kind]} frame ${plan.frames[index]}`;
    return `token ${index}, ${what}${sample}`;
  }

  function describe() {
    const frames = plan.clips.flat(), share = (100 * plan.pairs) / plan.tokens ** 2 || 0;
    const per = (slow) => {
      const one = frames.find((frame) => frame.slow === slow);
      return one ? `${one.tokens} (${one.grid.join(" x ")})` : "none";
    };
    const lines = [
      ["tokens in the row", number(plan.tokens)],
      ["video tokens, pooled", number(plan.pooled)],
      ["video tokens, unpooled", number(plan.unpooled)],
      ["tokens of a slow frame", per(true)],
      ["tokens of a fast frame", per(false)],
      ["visible pairs", `${number(plan.pairs)} (${share.toFixed(1)}%)`],
    ];
    counts.replaceChildren(...lines.map(([term, value]) => {
      const line = document.createElement("div");
      for (const [tag, words] of [["dt", term], ["dd", value]])
        line.appendChild(document.createElement(tag)).textContent = words;
      return line;
    }));
    const slow = frames.filter((frame) => frame.slow).length;
    schedule.setAttribute("aria-label",
      `${slow} slow and ${frames.length - slow} fast frames`);
    strip.setAttribute("aria-label", `${plan.tokens} tokens in order`);
    find("python").textContent = python();
  }

  function describeQuery() {
    mask.setAttribute("aria-valuemax", plan.tokens - 1);
    mask.setAttribute("aria-valuenow", query ?? 0);
    mask.setAttribute("aria-valuetext", query === null ? "none" : nameToken(query));
    if (query === null) {
      said.textContent = "Point at the mask or at a token to see what it may read; "
        + "click to keep it lit.";
      return;
    }
    const read = [0, 0, 0];
    for (let k = plan.first[query]; k < plan.stop[query]; k++)
      if (reads(plan, query, k)) read[plan.kinds[k]]++;
    const parts = KINDS.map((kind, i) => `${number(read[i])} ${kind}`).join(", ");
    const all = number(read[0] + read[1] + read[2]);
    const name = nameToken(query);
    said.textContent = `${name[0].toUpperCase()}${name.slice(1)}, reads ${all} of `
      + `${number(plan.tokens)} tokens: ${parts}.`;
  }

  function python() {
    const { ratio, keep_text: text, keep_slow: slow } = settings;
    const window = !settings.window ? "None" : `FrameWindow(
    frames=${settings.window},
    keep_text="${text}",
    keep_slow=${slow ? "True" : "False"},
)`;
    const clips = explorerRule.sampleFrames(settings);
    return `from fractions import Fraction
from fastslow import FrameWindow, TextSpan, VideoSpan
from fastslow import build_layout, build_schedule
from fastslow import visible_keys, visible_pairs

def sample(frames):
    schedule = build_schedule(
        frames,
        strategy="${settings.strategy}",
        slow_ratio=Fraction(${ratio[0]}, ${ratio[1]}),
        slow_stride=${settings.slow_stride},
        fast_stride=${settings.fast_stride},
    )
    grid = (${settings.height}, ${settings.width})
    return [
        TextSpan(token_ids=(7,) * ${settings.text_before}),
        VideoSpan(grid=grid, schedule=schedule),
        TextSpan(token_ids=(5,) * ${settings.text_after}),
    ]

row = build_layout(
    [sample(frames) for frames in [${clips.join(", ")}]],
    video_token_id=9,
    attention="${settings.attention}",
)
window = ${window}
visible = visible_keys(row, window)
print(len(row.input_ids), visible_pairs(visible))
# ${plan.tokens} ${plan.pairs}
`;
  }

  // ---- Pictures -----------------------------------------------------------------

  // Colours come from the style sheet, so that they follow the theme.
  function readColours() {
    const style = getComputedStyle(find("mask"));
    const read = (name) => style.getPropertyValue(`--explorer-${name}`).trim();
    const lit = KINDS.map(read), dim = KINDS.map((kind) => read(`${kind}-dim`));
    return { lit, dim, hidden: read("hidden"), paper: read("paper"), ink: read("ink") };
  }

  const isLit = (key) => query === null || reads(plan, query, key);
  const colourOf = (key) => colours[isLit(key) ? "lit" : "dim"][plan.kinds[key]];

  // Give a canvas a size in the page's pixels, and a pen that draws in them.
  function prepare(canvas, width, height) {
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    return pen;
  }

  const roomOf = (canvas) => canvas.parentElement.clientWidth;

  // Frames in lines, a new line for each sample: one line if that is large enough to be
  // seen, else as large as a height of 260 allows.
  function drawSchedule() {
    const { height, width, samples } = settings;
    const gap = 8, words = 16, many = samples > 1 ? 18 : 0, border = 3;
    const room = roomOf(schedule) - 2 * border;
    const fit = (side) => {
      const scale = side / Math.max(height, width);
      const across = Math.max(1, Math.floor((room + gap) / (width * scale + gap)));
      const lines = plan.clips.map((clip) => Math.ceil(clip.length / across));
      const line = height * scale + words + gap;
      const tall = lines.reduce((sum, n) => sum + n * line + many, 0);
      return { scale, across, lines, line, tall };
    };
    const sides = [72, 64, 56, 52, 48, 44, 40, 36, 32, 28];
    const inOneLine = (side) => fit(side).lines.every((lines) => lines === 1);
    const isLow = (side) => fit(side).tall <= 260;
    const size = fit(sides.find((side) => inOneLine(side) && isLow(side))
      ?? sides.find(isLow) ?? 24);
    const { scale, across, line } = size;
    const pen = prepare(schedule, room + 2 * border, size.tall + border);
    pen.font = "12px system-ui, sans-serif";
    let top = border;
    places.schedule = [];
    plan.clips.forEach((clip, sample) => {
      pen.fillStyle = colours.ink;
      pen.textAlign = "left";
      if (many) pen.fillText(`sample ${sample + 1}`, border, top + 10);
      top += many;
      clip.forEach((frame, t) => {
        const x = border + (t % across) * (width * scale + gap);
        const y = top + Math.floor(t / across) * line;
        drawFrame(pen, frame, x, y, scale);
        places.schedule.push({ x, y, frame, scale });
        pen.fillStyle = colours.ink;
        pen.textAlign = "center";
        const letter = frame.slow ? "S" : "F", label = `${letter} ${frame.tokens}`;
        const fits = pen.measureText(label).width <= width * scale + gap - 2;
        const middle = x + (width * scale) / 2;
        pen.fillText(fits ? label : letter, middle, y + height * scale + 13);
      });
      top += size.lines[sample] * line;
    });
  }

  // The windows of a frame, each a token; windows too small to be told apart are one.
  function drawFrame(pen, { stride, grid, start, tokens }, x, y, scale) {
    const { height, width } = settings;
    const inside = query !== null && query >= start && query < start + tokens;
    if (inside) {
      pen.fillStyle = colours.ink;
      pen.fillRect(x - 3, y - 3, width * scale + 6, height * scale + 6);
      pen.fillStyle = colours.paper;
      pen.fillRect(x - 1, y - 1, width * scale + 2, height * scale + 2);
    }
    if (stride * scale < 3) {
      pen.fillStyle = colourOf(start);
      pen.fillRect(x, y, width * scale, height * scale);
      return;
    }
    for (let i = 0; i < tokens; i++) {
      const row = Math.floor(i / grid[1]) * stride, column = (i % grid[1]) * stride;
      const across = (Math.min(column + stride, width) - column) * scale - 1;
      const down = (Math.min(row + stride, height) - row) * scale - 1;
      pen.fillStyle = query === start + i ? colours.ink : colourOf(start + i);
      pen.fillRect(x + column * scale, y + row * scale,
        Math.max(across, 1), Math.max(down, 1));
    }
  }

  // The row from left to right, a new line for each sample.
  function drawStrip() {
    const room = roomOf(strip);
    const ends = plan.clips.map((_, sample) => plan.segments.lastIndexOf(sample) + 1);
    const starts = [0, ...ends.slice(0, -1)];
    const linesOf = (cell) => ends.map(
      (end, sample) => Math.ceil((end - starts[sample]) / Math.floor(room / cell)));
    const tall = (cell) => linesOf(cell).reduce((sum, n) => sum + n, 0) * cell;
    let cell = 18;
    while (cell > 2 && tall(cell) > 130) cell--;
    const across = Math.floor(room / cell), between = 6, lines = linesOf(cell);
    const pen = prepare(strip, room, tall(cell) + between * (ends.length - 1));
    const gap = cell > 3 ? 1 : 0, boxes = [];
    let top = 0;
    ends.forEach((end, sample) => {
      boxes.push({ top, start: starts[sample], end });
      const shade = (k) => (k === query ? colours.ink : colourOf(k));
      for (let k = starts[sample]; k < end;) {
        const index = k - starts[sample], colour = shade(k);
        const x = (index % across) * cell, y = top + Math.floor(index / across) * cell;
        const room = Math.min(gap ? 1 : across - (index % across), end - k);
        let run = 1; // tokens too small to be set apart are drawn together
        while (run < room && shade(k + run) === colour) run++;
        pen.fillStyle = colour;
        pen.fillRect(x, y, run * cell - gap, cell - gap);
        k += run;
      }
      top += lines[sample] * cell + between;
    });
    places.strip = { cell, across, boxes };
  }

  // Pixel by pixel, so that a row of any length takes the same time. A strip of keys
  // stands above the mask and a strip of queries at its left.
  function drawMask() {
    const scale = window.devicePixelRatio || 1, n = plan.tokens;
    const room = Math.floor(Math.min(roomOf(mask), 600) * scale);
    const thick = Math.round(8 * scale), edge = thick + Math.round(3 * scale);
    const whole = Math.min(Math.floor((room - edge) / n), Math.round(24 * scale));
    const cell = whole >= 4 ? whole : 0; // smaller ones would waste too much room
    const side = cell ? cell * n : room - edge, size = edge + side;
    prepare(mask, size / scale, size / scale);
    const pen = mask.getContext("2d");
    const image = pen.createImageData(size, size);
    const pixels = new Uint32Array(image.data.buffer);
    const lit = colours.lit.map(word), dim = colours.dim.map(word);
    const ink = word(colours.ink), hidden = word(colours.hidden);

    // The token of every pixel along a side, -1 between cells; the pixel of a token.
    const gap = cell >= 5 * scale ? Math.round(scale) : 0;
    const tokenAt = (place) => gap && place % cell >= cell - gap ? -1
      : Math.floor((place * n) / side);
    const tokens = Int32Array.from({ length: side }, (_, place) => tokenAt(place));
    const placeOf = (token) => explorerRule.ceilDiv(token * side, n);
    const unread = Uint32Array.from(tokens, (key) => (key < 0 ? 0 : hidden));
    const strip = Uint32Array.from(tokens, (key) => key < 0 ? 0
      : key === query ? ink : (isLit(key) ? lit : dim)[plan.kinds[key]]);
    const band = query === null || cell ? [0, 0]
      : [placeOf(query), placeOf(query) + Math.round(3 * scale)];

    for (let y = 0; y < thick; y++) pixels.set(strip, y * size + edge);
    for (let y = 0, last = -1; y < side; y++) {
      const line = (edge + y) * size, begin = line + edge;
      const q = y >= band[0] && y < band[1] ? query : tokens[y];
      if (q >= 0 && q === last) {
        pixels.copyWithin(line, line - size, line);
        continue;
      }
      last = q;
      pixels.fill(q === query && q !== null ? ink : strip[y], line, line + thick);
      if (q < 0) continue;
      pixels.set(unread, begin);
      const shades = query === null || q === query ? lit : dim;
      for (let x = placeOf(plan.first[q]); x < side && tokens[x] < plan.stop[q]; x++) {
        const key = tokens[x];
        if (key >= 0 && reads(plan, q, key)) pixels[begin + x] = shades[plan.kinds[key]];
      }
    }
    pen.putImageData(image, 0, 0);
    places.mask = { edge: edge / scale, side: side / scale };
  }

  // A colour as the four bytes of a pixel.
  function word(colour) {
    const value = parseInt(colour.slice(1), 16);
    const red = value >> 16, green = (value >> 8) & 255, blue = value & 255;
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  }

  // ---- Pointing -----------------------------------------------------------------

  function tokenAtMask({ offsetY }) {
    const { edge, side } = places.mask;
    const index = Math.floor(((offsetY - edge) * plan.tokens) / side);
    return index >= 0 && index < plan.tokens ? index : null;
  }

  function tokenAtStrip({ offsetX, offsetY }) {
    const { cell, across, boxes } = places.strip;
    const box = boxes.findLast(({ top }) => top <= offsetY);
    const column = Math.floor(offsetX / cell);
    if (!box || column >= across) return null;
    const index = box.start + Math.floor((offsetY - box.top) / cell) * across + column;
    return index < box.end ? index : null;
  }

  function tokenAtSchedule({ offsetX, offsetY }) {
    for (const { x, y, frame, scale } of places.schedule) {
      const column = (offsetX - x) / scale, row = (offsetY - y) / scale;
      if (column < 0 || row < 0 || column >= settings.width || row >= settings.height)
        continue;
      const down = Math.floor(row / frame.stride);
      return frame.start + down * frame.grid[1] + Math.floor(column / frame.stride);
    }
    return null;
  }

  const inOneFrame = (a, b) => plan.kinds[a] !== TEXT
    && plan.frames[a] === plan.frames[b] && plan.segments[a] === plan.segments[b];

  // The first token of a frame; a token of text stands alone.
  function runStart(index) {
    while (index > 0 && inOneFrame(index, index - 1)) index--;
    return index;
  }

  // The token after a frame, or the last one of the row.
  function runStop(index) {
    const last = plan.tokens - 1;
    while (index < last && inOneFrame(index, index + 1)) index++;
    return Math.min(index + 1, last);
  }

  function moved(key) {
    const last = plan.tokens - 1, now = query ?? -1;
    if (key === "ArrowDown" || key === "ArrowRight") return Math.min(now + 1, last);
    if (key === "ArrowUp" || key === "ArrowLeft") return Math.max(now - 1, 0);
    if (key === "Home") return 0;
    if (key === "End") return last;
    if (key === "PageUp") return runStart(Math.max(runStart(Math.max(now, 0)) - 1, 0));
    if (key === "PageDown") return runStop(Math.max(now, 0));
    return undefined;
  }

  // ---- Putting it together ------------------------------------------------------

  let asked = false;
  function light(index) {
    query = index;
    if (!asked) requestAnimationFrame(draw);
    asked = true;
  }

  function pin(index) {
    pinned = index;
    light(index);
  }

  function draw() {
    asked = false;
    const last = plan.tokens - 1;
    if (query !== null) query = Math.min(query, last);
    if (pinned !== null) pinned = Math.min(pinned, last);
    drawSchedule();
    drawStrip();
    drawMask();
    describeQuery();
    writeAddress();
  }

  function update() {
    settings = readForm();
    plan = makePlan(settings);
    describeControls();
    describe();
    draw();
  }

  function repaint() {
    colours = readColours();
    draw();
  }

  const standard = new Map(controls.map((control) => [control.name, written(control)]));
  form.addEventListener("input", ({ target }) => {
    orderStrides(target);
    update();
  });
  form.addEventListener("reset", () => setTimeout(() => {
    query = pinned = null;
    update();
  }));
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const [canvas, tokenAt] of [
    [mask, tokenAtMask], [strip, tokenAtStrip], [schedule, tokenAtSchedule],
  ]) {
    canvas.addEventListener("pointermove", (event) => {
      const index = tokenAt(event) ?? pinned;
      if (index !== query) light(index);
    });
    canvas.addEventListener("pointerleave", () => light(pinned));
    canvas.addEventListener("click", (event) => {
      const index = tokenAt(event);
      pin(index === pinned ? null : index);
    });
  }
  mask.addEventListener("keydown", (event) => {
    const next = event.key === "Escape" ? null : moved(event.key);
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    pin(next);
  });
  window.addEventListener("hashchange", () => {
    readAddress();
    update();
  });
  new ResizeObserver(() => draw()).observe(find("strip").parentElement);
  new MutationObserver(repaint)
    .observe(document.body, { attributes: true, attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  colours = readColours();
  readAddress();
  update();
})();
