// Captions on the screen: finished sentences in a log, the open one below it. Knows nothing of microphones or sockets.

import { short, words } from "./transcript.js";

/** Pixels from the end within which a reader counts as being at the bottom. */
const NEAR = 48;

export class Captions {
  constructor(root) {
    this._scroller = root.querySelector("#transcript");
    this._log = root.querySelector("#log");
    this._interim = root.querySelector("#interim");
    this._committed = root.querySelector("#committed");
    this._tentative = root.querySelector("#tentative");
    this._time = this._interim.querySelector(".time");
    this._empty = root.querySelector("#empty");
    this._jump = root.querySelector("#jump");
    this._begun = null; // where the open utterance starts
    this._shown = ""; // its committed text on screen
    /** Finals, as they came. */
    this.finals = [];
    this._follow = true; // the reader is at the end and wants to stay there
    this._top = 0;
    this._scroller.addEventListener("scroll", () => this._scrolled(), { passive: true });
    // Rows find their height only when they come into view, after they were scrolled to.
    const sizes = new ResizeObserver(() => this._keepEnd());
    for (const each of [this._scroller, this._log, this._interim]) sizes.observe(each);
    this._jump.addEventListener("click", () => {
      this._follow = true;
      this._keepEnd();
      this._scroller.focus({ preventScroll: true });
    });
  }

  started(at) {
    this._begun = at;
  }

  /** The open utterance. Committed text is only ever appended to; the tentative rest changes in place. */
  partial({ committed, tentative }) {
    this._change(() => {
      this._empty.hidden = true;
      this._interim.hidden = !committed && !tentative;
      this._time.textContent = this._begun === null ? "" : short(this._begun);
      if (committed.startsWith(this._shown)) {
        if (committed.length > this._shown.length) this._committed.append(committed.slice(this._shown.length));
      } else {
        this._committed.textContent = committed; // another session heard the broken one's words again
      }
      this._shown = committed;
      this._tentative.textContent = tentative;
    });
  }

  /** The utterance is finished: from the open line into the log. */
  final(final) {
    this._change(() => {
      this._reset();
      if (!final.text) return;
      this.finals.push(final);
      this._empty.hidden = true;
      this._log.append(line(final));
    });
  }

  /** What was tentative is given up, as when a stream failed. */
  abandon() {
    this._change(() => this._reset());
  }

  clear() {
    this.finals = [];
    this._log.replaceChildren();
    this._reset();
    this._empty.hidden = false;
    this._follow = true;
    this._keepEnd();
  }

  _reset() {
    this._interim.hidden = true;
    this._committed.replaceChildren();
    this._tentative.textContent = "";
    this._shown = "";
    this._begun = null;
  }

  _change(deed) {
    deed();
    this._keepEnd();
  }

  /** Scroll along only for a reader who is at the end. */
  _keepEnd() {
    if (this._follow) this._scroller.scrollTop = this._scroller.scrollHeight;
    this._jump.hidden = this._follow;
  }

  /** Up is the reader's wish; down may be ours, or the browser's that keeps a place. */
  _scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this._scroller;
    if (scrollHeight - scrollTop - clientHeight < NEAR) this._follow = true;
    else if (scrollTop < this._top) this._follow = false;
    this._top = scrollTop;
    this._jump.hidden = this._follow;
  }
}

function line(final) {
  const row = document.createElement("p");
  row.className = "utterance";
  const time = document.createElement("time");
  time.className = "time";
  time.dateTime = `PT${final.start.toFixed(2)}S`;
  time.textContent = short(final.start);
  row.append(time, words(final));
  return row;
}
