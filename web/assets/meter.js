// The level of the last seconds, as bars; one bar that grows where motion is not wanted.

const BARS = 60;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Meter {
  constructor(canvas) {
    this._canvas = canvas;
    this._levels = new Array(BARS).fill(0);
    this._peak = 0;
    this._frames = 0;
    this._drawing = false;
    new ResizeObserver(() => this._draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this._draw());
  }

  /** A frame of 20 ms; a bar is three of them. */
  add(level) {
    this._peak = Math.max(this._peak, level);
    this._frames += 1;
    if (this._frames < 3) return;
    this._levels.shift();
    this._levels.push(this._peak);
    this._peak = this._frames = 0;
    if (this._drawing) return;
    this._drawing = true;
    requestAnimationFrame(() => {
      this._drawing = false;
      this._draw();
    });
  }

  rest() {
    this._levels.fill(0);
    this._draw();
  }

  _draw() {
    const { clientWidth: width, clientHeight: height } = this._canvas;
    const scale = devicePixelRatio || 1;
    if (this._canvas.width !== Math.round(width * scale)) this._canvas.width = Math.round(width * scale);
    if (this._canvas.height !== Math.round(height * scale)) this._canvas.height = Math.round(height * scale);
    const context = this._canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.fillStyle = getComputedStyle(this._canvas).color;
    // Ears hear ratios: the lower 50 dB fill the height.
    const shape = (level) => Math.max(0, 1 + Math.log10(Math.max(level, 1e-6)) / 2.5);
    if (calm.matches) {
      context.fillRect(0, height / 2 - 4, width * shape(this._levels.at(-1)), 8);
      return;
    }
    const step = width / BARS;
    this._levels.forEach((level, at) => {
      const tall = Math.max(2, shape(level) * (height - 4));
      context.globalAlpha = 0.35 + 0.65 * (at / BARS);
      context.beginPath();
      context.roundRect(at * step + step * 0.2, (height - tall) / 2, step * 0.6, tall, step * 0.3);
      context.fill();
    });
    context.globalAlpha = 1;
  }
}
