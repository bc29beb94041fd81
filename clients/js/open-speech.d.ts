/** The client of open-speech: live transcription over its native WebSocket, in browsers and in Node. */

/** Options of a session, as the server knows them; what is left out is the server's default. */
export interface SessionOptions {
  model?: string;
  /** ISO-639-1 code; left out: detected. */
  language?: string;
  task?: "transcribe" | "translate";
  encoding?: "pcm_s16le" | "pcm_f32le" | "mulaw" | "alaw" | "opus" | "container";
  /** Hertz, 8000 to 48000. */
  sample_rate?: number;
  channels?: number;
  endpointing?: "silence" | "client";
  /** Silence that ends an utterance. */
  endpointing_ms?: number;
  vad_threshold?: number;
  pre_roll_ms?: number;
  /** Seconds added to all times. */
  offset?: number;
  partials?: boolean;
  eager?: boolean;
  words?: boolean;
  timings?: boolean;
  prompt?: string;
  hotwords?: string | string[];
}

export interface ConnectOptions extends SessionOptions {
  key?: string;
  /** What happens when the connection breaks; `false`: the stream fails. Pauses are in seconds. */
  reconnect?: boolean | { attempts?: number; least?: number; most?: number };
  /** Audio kept while there is no connection or no final; default 120. */
  bufferSeconds?: number;
  /** Seconds that a handshake may take; default 10. */
  connectTimeout?: number;
  /** A WebSocket class, where the platform has none. */
  WebSocket?: unknown;
  signal?: AbortSignal;
}

export interface Word {
  text: string;
  /** Seconds from the start of the stream. */
  start: number;
  end: number;
  /** 0 … 1. */
  probability: number;
}

export interface Ready {
  type: "ready";
  seq: number;
  session: string;
  model: string;
  /** Null where the container tells it. */
  sample_rate: number | null;
  received: number;
  resumable_seconds: number;
  /** The server still had the session. */
  resumed: boolean;
}
export interface SpeechStarted { type: "speech_started"; seq: number; utterance: number; at: number }
export interface SpeechStopped { type: "speech_stopped"; seq: number; utterance: number; at: number }
export interface SpeechResumed { type: "speech_resumed"; seq: number; utterance: number }
export interface Partial {
  type: "partial";
  seq: number;
  utterance: number;
  revision: number;
  /** Grows only; the final begins with it. */
  committed: string;
  /** Follows `committed`, with its own leading space, and may still change. */
  tentative: string;
  words?: Word[];
  received: number;
  lag: number;
}
export interface EagerFinal { type: "eager_final"; seq: number; utterance: number; text: string }
export interface Final {
  type: "final";
  seq: number;
  utterance: number;
  text: string;
  start: number;
  end: number;
  language: string | null;
  words?: Word[];
  /** Seconds by stage, asked for with `timings`. */
  timing?: {
    delay: number | null;
    queue: number;
    recognition: number;
    speculated: boolean;
    encode?: number;
    generate?: number;
    align?: number;
  };
  received: number;
  /** What the stream has settled on, where no language was asked for. */
  stream_language?: string;
  /** The server stopped in the middle of it, and the stream could not go on elsewhere. */
  cut?: boolean;
}
export interface Ack { type: "ack"; seq: number; received: number; lag: number }
export interface Marker { type: "marker"; seq: number; marker: string | null; at: number }
export interface End { type: "end"; seq: number; received: number; reason: string }
export interface ServerError {
  type: "error";
  seq: number;
  code: string;
  message: string;
  param?: string;
  retry_after?: number;
  /** Under which the server's log knows it. */
  request?: string;
  /** Set where only this utterance failed; the stream goes on. */
  utterance?: number;
}
/** Of the client itself: the connection's state. */
export interface Connection {
  type: "connection";
  state: "opening" | "open" | "reconnecting" | "closed";
  attempt?: number;
  /** Seconds until the next attempt. */
  delay?: number;
  /** Close code of the connection that broke. */
  code?: number;
}
/** Of the client itself: so much audio was dropped, because no connection came for longer than `bufferSeconds`. */
export interface Gap { type: "gap"; seconds: number }
/** Of the client itself: the stream is over; `for await` throws the same error. */
export interface Failed { type: "failed"; error: OpenSpeechError }

export type Event =
  | Ready | SpeechStarted | SpeechStopped | SpeechResumed | Partial | EagerFinal | Final | Ack | Marker | End
  | ServerError | Connection | Gap | Failed;

export class OpenSpeechError extends Error {
  readonly code: string;
  readonly param?: string;
  readonly retryAfter?: number;
  readonly closeCode?: number;
}

export class StreamEvent<T = Event> extends globalThis.Event {
  readonly detail: T;
}

/** The protocol without I/O or clock. */
export class Conversation {
  constructor(options?: SessionOptions & { bufferSeconds?: number });
  readonly seconds: number;
  readonly unsent: number;
  readonly unconfirmed: number;
  readonly lag: number;
  readonly ended: boolean;
  /** The resumed session needs audio that is forgotten: leave it. */
  readonly stale: boolean;
  audio(data: Uint8Array): Gap | null;
  commit(marker?: string): void;
  end(): void;
  opening(): string;
  next(): Uint8Array | string | null;
  receive(text: string): Event[];
  lost(): boolean;
}

export class Stream extends EventTarget implements AsyncIterable<Event> {
  constructor(url: string | URL, options?: ConnectOptions);
  readonly state: "connecting" | "opening" | "open" | "reconnecting" | "closed";
  readonly session: string | null;
  readonly model: string | null;
  readonly lag: number;
  readonly unconfirmed: number;
  readonly buffered: number;
  readonly seconds: number;
  open(): Promise<this>;
  send(audio: ArrayBuffer | ArrayBufferView): Promise<void>;
  commit(marker?: string): void;
  end(): Promise<void>;
  close(): void;
  addEventListener<K extends Event["type"]>(
    type: K,
    listener: (event: StreamEvent<Extract<Event, { type: K }>>) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  /**
   * Events from the first on, also those that came before the loop began: they wait, but for acks and partials that a newer
   * one or the final makes void. 10,000 may wait, hours of speech. Beyond, the loop throws `unread` once it has read
   * them, and listeners go on; where no loop runs then they are let go, and one that begins later throws at once.
   */
  [Symbol.asyncIterator](): AsyncIterableIterator<Event>;
}

export function connect(url: string | URL, options?: ConnectOptions): Promise<Stream>;
export function address(url: string | URL): string;

export interface MicrophoneOptions {
  deviceId?: string;
  echoCancellation?: boolean;
  noiseSuppression?: boolean;
  autoGainControl?: boolean;
  /** Address of `open-speech-worklet.js`; default: beside this module. */
  worklet?: string | URL;
}

export class Capture extends EventTarget {
  readonly sampleRate: number;
  readonly label: string;
  start(sink: (frame: Int16Array) => void): void;
  stop(): void;
  addEventListener(type: "level", listener: (event: StreamEvent<{ type: "level"; level: number }>) => void): void;
  addEventListener(type: "ended", listener: (event: StreamEvent<{ type: "ended" }>) => void): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

export function openMicrophone(options?: MicrophoneOptions): Promise<Capture>;
export function openTab(options?: { worklet?: string | URL }): Promise<Capture>;
export function listen(
  url: string | URL,
  options?: ConnectOptions & { microphone?: MicrophoneOptions | Capture },
): Promise<Stream>;

/** What subtitles need of a final. */
export interface Spoken { text: string; start: number; end: number; words?: Array<Omit<Word, "probability">> }
export interface Cue { start: number; end: number; lines: string[] }
export function text(finals: Spoken[]): string;
export function srt(finals: Spoken[], options?: { width?: number; lines?: number }): string;
export function vtt(finals: Spoken[], options?: { width?: number; lines?: number }): string;
export function cues(finals: Spoken[], options?: { width?: number; lines?: number }): Cue[];
export function clock(seconds: number, mark?: string): string;
