// A picture as the model saw it, and over it what was kept of it or how it was scored.
const unpack = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
// The set that a bitmap says, as an array of booleans: the first token is the highest bit of the first byte.
const bits = (text, count) => {
  const bytes = unpack(text);
  return Array.from({ length: count }, (_, place) => ((bytes[place >> 3] >> (7 - (place & 7))) & 1) === 1);
};
// 8-bit codes between the least and the largest number.
const decoded = (entry) => Array.from(unpack(entry.codes), (code) => entry.least + code * ((entry.largest - entry.least) / 255));

// Where every image token lies: {picture, canvas, box, grid, row, column}; without a canvas for newlines and the like.
const placesOf = (pictures) => pictures.flatMap((picture, at) => picture.grids.flatMap(([canvas, rows, columns, box, newlines], grid) => {
  const found = [];
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const [wide, tall] = [(box[2] - box[0]) / columns, (box[3] - box[1]) / rows];
      found.push({ picture: at, canvas, grid, row, column, box: canvas === null ? null : [box[0] + column * wide, box[1] + row * tall, wide, tall] });
    }
    if (newlines) found.push({ picture: at, canvas: null, grid, row, column: columns, box: null });
  }
  return found;
}));

// Dark blue over green to yellow: told apart by brightness alone, too.
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const heat = (share) => {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[low].map((value, place) => Math.round(value + (at - low) * (STOPS[low + 1][place] - value)));
};

class Board {
  // One canvas of one picture. told(token): called with the token that is pointed at, or null.
  constructor(told) {
    this.canvas = make("canvas", { tabindex: "0", role: "img" });
    this.caption = make("figcaption", {});
    this.node = make("figure", { class: "board" }, this.canvas, this.caption);
    this.told = told;
    this.canvas.addEventListener("pointermove", (event) => this.point(this.under(event)));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("blur", () => this.point(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.paint()).observe(this.canvas);
  }
  // size: of the canvas in its own pixels. image: loaded, or null. tokens: [{token, box, row, column, grid}].
  set(state) {
    this.state = state;
    this.canvas.style.aspectRatio = `${state.size[0]} / ${state.size[1]}`;
    this.canvas.setAttribute("aria-label", state.label);
    this.caption.textContent = state.caption;
    this.paint();
  }
  under(event) {
    if (!this.state) return null;
    const area = this.canvas.getBoundingClientRect();
    const [x, y] = [((event.clientX - area.left) / area.width) * this.state.size[0], ((event.clientY - area.top) / area.height) * this.state.size[1]];
    return this.state.tokens.find(({ box }) => x >= box[0] && x < box[0] + box[2] && y >= box[1] && y < box[1] + box[3]) || null;
  }
  key(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || !this.state) return;
    event.preventDefault();
    const here = this.pointed || this.state.tokens[0];
    const next = this.pointed ? this.state.tokens.find((one) => one.grid === here.grid && one.row === here.row + step[0] && one.column === here.column + step[1]) : here;
    if (next) this.point(next);
  }
  point(entry) {
    if (this.pointed === entry) return;
    this.pointed = entry;
    this.told(entry && entry.token);
    this.paint();
  }
  paint() {
    const { state, canvas } = this;
    const wide = canvas.clientWidth;
    if (!state || !wide) return;
    const sharp = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(wide * sharp), Math.round((wide * sharp * state.size[1]) / state.size[0])];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    const scale = width / state.size[0];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = css("--empty");
    context.fillRect(0, 0, width, height);
    if (state.image) this.picture(context, width, height);
    context.filter = "none";
    context.setTransform(scale, 0, 0, scale, 0, 0);
    const edge = (places) => this.outline(context, places, scale, sharp);
    if (state.mode === "scores" && state.scores) this.heated(context);
    else if (state.mode !== "picture") this.dimmed(context);
    if (state.mode !== "picture" && state.some) edge(state.kept);
    if (this.pointed) this.mark(context, scale, sharp);
  }
  picture(context, width, height) {
    const { image, size, coarse } = this.state;
    context.imageSmoothingEnabled = !coarse;
    context.filter = this.state.mode === "scores" && this.state.scores ? "grayscale(1)" : "none";  // colours are the scores'
    if (!coarse) return context.drawImage(image, 0, 0, width, height);
    const small = Object.assign(document.createElement("canvas"), { width: size[0], height: size[1] });
    small.getContext("2d").drawImage(image, 0, 0, size[0], size[1]);
    return context.drawImage(small, 0, 0, width, height);
  }
  dimmed(context) {
    context.fillStyle = css("--scrim");
    for (const { token, box } of this.state.tokens) if (!this.state.kept[token]) context.fillRect(box[0] - 0.05, box[1] - 0.05, box[2] + 0.1, box[3] + 0.1);
  }
  heated(context) {
    const { tokens, scores, least, largest } = this.state;
    for (const { token, box } of tokens) {
      const score = scores.get(token);
      const [red, green, blue] = score === undefined ? [128, 128, 128] : heat(largest > least ? (score - least) / (largest - least) : 0);
      context.fillStyle = `rgba(${red},${green},${blue},0.72)`;
      context.fillRect(box[0], box[1], box[2], box[3]);
    }
  }
  // Around what was kept, where something that was not lies beside it.
  outline(context, kept, scale, sharp) {
    const at = new Map(this.state.tokens.map((entry) => [`${entry.grid} ${entry.row} ${entry.column}`, entry.token]));
    const path = new Path2D();
    for (const { token, box, grid, row, column } of this.state.tokens) {
      if (!kept[token]) continue;
      const open = (down, right) => { const other = at.get(`${grid} ${row + down} ${column + right}`); return other === undefined || !kept[other]; };
      const [x, y, w, h] = box;
      if (open(-1, 0)) { path.moveTo(x, y); path.lineTo(x + w, y); }
      if (open(1, 0)) { path.moveTo(x, y + h); path.lineTo(x + w, y + h); }
      if (open(0, -1)) { path.moveTo(x, y); path.lineTo(x, y + h); }
      if (open(0, 1)) { path.moveTo(x + w, y); path.lineTo(x + w, y + h); }
    }
    for (const [color, line] of [["rgba(255,255,255,0.9)", 3.4], [css("--kept"), 1.7]]) {
      Object.assign(context, { strokeStyle: color, lineWidth: (line * sharp) / scale, lineCap: "square" });
      context.stroke(path);
    }
  }
  mark(context, scale, sharp) {
    const boxes = [this.pointed.token, ...(this.state.sources[this.pointed.token] || [])].map((token) => this.state.tokens.find((entry) => entry.token === token)).filter(Boolean);
    for (const { box } of boxes) {
      for (const [color, line] of [["#000", 4.5], ["#fff", 2]]) {
        Object.assign(context, { strokeStyle: color, lineWidth: (line * sharp) / scale });
        context.strokeRect(box[0], box[1], box[2], box[3]);
      }
    }
  }
}
