// What went wrong, and what to do about it, in words for people who only wanted captions.

/** `{title, text, remedy}` of an error from the browser, the client or the server. `remedy` may hold one address. */
export function explain(error) {
  const name = error?.code && typeof error.code === "string" ? error.code : error?.name;
  switch (name) {
    case "NotAllowedError":
      return {
        title: "The microphone is not allowed",
        text: "The browser, or the system, was told not to give this page the microphone.",
        remedy: "Click the sign to the left of the address, allow the microphone, then press start again.",
      };
    case "NotFoundError":
    case "OverconstrainedError":
      return {
        title: "No microphone was found",
        text: "The chosen device is not there, or none is plugged in.",
        remedy: "Connect one, or choose another under Options, then press start again.",
      };
    case "NotReadableError":
    case "AbortError":
      return {
        title: "The microphone cannot be used",
        text: "It is there, but does not open; another programme may hold it.",
        remedy: "Close what else uses it, then press start again.",
      };
    case "no_audio":
      return {
        title: "The browser’s audio does not start",
        text: "Some browsers need a device for sound to come out of, even to listen.",
        remedy: "Connect headphones or a screen with speakers, or use another browser, then press start again.",
      };
    case "insecure_context":
      return {
        title: "This address cannot have the microphone",
        text: "Browsers give it only to pages from HTTPS, or from this very machine.",
        remedy: `For other devices start the server with “open-speech serve --lan”: it prints its HTTPS address, such as https://${location.host}/, and a code to scan. On the server's own machine open`,
        address: `http://localhost:${location.port || 80}/`,
      };
    case "no_sound":
      return {
        title: "What you shared has no sound",
        text: "The browser shares the sound of a tab or of the screen only if you say so.",
        remedy: "Press start again, choose a tab, and tick “Also share tab audio”.",
      };
    case "not_shared":
      return {
        title: "Nothing was shared",
        text: "The choice of a tab or screen was cancelled, or the system did not let the browser have it.",
        remedy: "Press start again, and choose a tab.",
      };
    case "unsupported":
      return {
        title: "This browser cannot share sound",
        text: "Capturing a tab works in Chromium, Chrome and Edge on a computer.",
        remedy: "Use the microphone, or another browser.",
      };
    case "overloaded":
    case "stopping":
      return {
        title: "The server is busy",
        text: sentence(error.message),
        remedy: error.retryAfter ? `Try again in ${Math.ceil(error.retryAfter)} s.` : "Try again in a moment.",
      };
    case "invalid_api_key":
      return { title: "The key was not accepted", text: sentence(error.message), remedy: "Press start to give another one." };
    case "unreachable":
      return {
        title: "The server does not answer",
        text: "It may have been stopped, or the network is down.",
        remedy: "Check that it runs, then try again. What was heard is kept on this page.",
      };
    case "lost":
      return {
        title: "The connection was lost",
        text: "The server went away in the middle of the work.",
        remedy: "Try again. What was heard is kept on this page.",
      };
    case "away":
      return {
        title: "The server does not answer",
        text: "It may have been stopped, or the network is down. It is tried again by itself, and two minutes of what you say are kept.",
        remedy: "Check that it runs. What was heard stays on this page.",
      };
    case "missing_scope":
      return { title: "Your key may not do that", text: sentence(error.message), remedy: "Ask the server’s operator for another key." };
    case "rate_limit_exceeded":
      return {
        title: "That is more than your key may do",
        text: sentence(error.message),
        remedy: error.retryAfter ? `Try again in ${Math.ceil(error.retryAfter)} s.` : "Try again later.",
      };
    case "device_gone":
      return {
        title: "The source ended",
        text: "The microphone was unplugged, or sharing was stopped.",
        remedy: "Everything up to there has been transcribed. Press start to go on.",
      };
    default:
      return { title: "That did not work", text: sentence(error?.message ?? String(error)), remedy: "" };
  }
}

/** Show a problem at the top of the page, with a button to take it away. */
export function show(problem) {
  const box = document.querySelector("#problem");
  const title = document.createElement("strong");
  title.textContent = problem.title;
  const text = document.createElement("p");
  text.append(title, ` ${problem.text} ${problem.remedy}`);
  if (problem.address) {
    const link = document.createElement("a");
    link.href = problem.address;
    link.textContent = problem.address;
    text.append(" ", link);
  }
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Dismiss";
  close.addEventListener("click", hide);
  box.replaceChildren(text, close);
  box.hidden = false;
}

export function hide() {
  const box = document.querySelector("#problem");
  box.hidden = true;
  box.replaceChildren();
}

function sentence(text) {
  const found = text.trim();
  return found.charAt(0).toUpperCase() + found.slice(1) + (/[.!?]$/.test(found) ? "" : ".");
}
