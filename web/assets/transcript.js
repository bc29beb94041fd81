// Finals as files: text, subtitles, JSON.

import { srt, text, vtt } from "../client/open-speech.js";

const KINDS = {
  txt: { type: "text/plain", write: text },
  srt: { type: "application/x-subrip", write: (finals) => srt(finals) },
  vtt: { type: "text/vtt", write: (finals) => vtt(finals) },
  json: { type: "application/json", write: (finals, about) => JSON.stringify({ ...about, utterances: finals }, null, 2) + "\n" },
};

/** Hand the transcript over as a download. `about` goes into the JSON. */
export function download(format, name, finals, about = {}) {
  const { type, write } = KINDS[format];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(finals, about)], { type }));
  link.download = `${name}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Put the text on the clipboard; a page without HTTPS has none, and copies by selection. */
export async function copy(finals) {
  const found = text(finals);
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(found);
    return;
  }
  const area = document.createElement("textarea");
  area.value = found;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** A button that opens a few choices below it, by click and by keyboard; `onChoice(format)`. */
export function menu(button, choices, onChoice) {
  const set = (open) => {
    choices.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
  };
  button.addEventListener("click", () => {
    set(choices.hidden);
    if (!choices.hidden) choices.querySelector("button").focus();
  });
  choices.addEventListener("click", ({ target }) => {
    if (!target.dataset.format) return;
    set(false);
    button.focus();
    onChoice(target.dataset.format);
  });
  const around = button.parentElement;
  around.addEventListener("keydown", (event) => {
    const items = [...choices.querySelectorAll("button")];
    const at = items.indexOf(document.activeElement);
    if (event.key === "Escape" && !choices.hidden) {
      set(false);
      button.focus();
    } else if (event.key === "ArrowDown" && !choices.hidden) {
      event.preventDefault();
      items[(at + 1) % items.length].focus();
    } else if (event.key === "ArrowUp" && !choices.hidden) {
      event.preventDefault();
      items[(at - 1 + items.length) % items.length].focus();
    }
  });
  around.addEventListener("focusout", ({ relatedTarget }) => {
    if (!around.contains(relatedTarget)) set(false);
  });
  document.addEventListener("pointerdown", ({ target }) => {
    if (!around.contains(target)) set(false);
  });
}

/** Whether words show how sure the recogniser was: one choice for the whole page, and any number of buttons for it. */
export const confidence = {
  get on() {
    return document.body.classList.contains("confidence");
  },
  toggle() {
    document.body.classList.toggle("confidence");
    for (const button of document.querySelectorAll("[data-confidence]")) this.tell(button);
  },
  tell(button) {
    button.setAttribute("aria-pressed", String(this.on));
  },
};

/** `1:02:03` or `2:03`. */
export function short(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const rest = `${hours ? two(Math.floor(whole / 60) % 60) : Math.floor(whole / 60)}:${two(whole % 60)}`;
  return hours ? `${hours}:${rest}` : rest;
}

/** A span of words; each knows how sure the recogniser was. */
export function words(utterance) {
  const box = document.createElement("span");
  box.className = "words";
  box.dir = "auto";
  if (utterance.language) box.lang = utterance.language;
  if (!utterance.words?.length) {
    box.textContent = utterance.text;
    return box;
  }
  let at = 0;
  for (const word of utterance.words) {
    const found = utterance.text.indexOf(word.text, at);
    if (found < 0) continue;
    if (found > at) box.append(utterance.text.slice(at, found));
    at = found + word.text.length;
    const span = document.createElement("span");
    span.className = word.probability < 0.5 ? "w doubtful" : word.probability < 0.8 ? "w unsure" : "w";
    span.textContent = word.text;
    span.dataset.start = word.start;
    span.dataset.end = word.end;
    span.dataset.probability = `${Math.round(word.probability * 100)} %`;
    box.append(span);
  }
  box.append(utterance.text.slice(at));
  return box;
}
