/** Runs in the audio thread: gathers 20 ms, as 16-bit samples with the loudest of them, and hands the buffer over. */
class OpenSpeechCapture extends AudioWorkletProcessor {
  constructor() {
    super();
    this._length = Math.round(sampleRate / 50);
    this._fresh();
  }

  _fresh() {
    this._frame = new Int16Array(this._length);
    this._filled = 0;
    this._level = 0;
  }

  process([input]) {
    const samples = input[0];
    if (!samples) return true; // the source is silent or gone
    for (const sample of samples) {
      const clipped = Math.max(-1, Math.min(1, sample));
      this._frame[this._filled] = Math.round(clipped * 32767);
      this._filled += 1;
      this._level = Math.max(this._level, Math.abs(clipped));
      if (this._filled === this._length) {
        this.port.postMessage({ frame: this._frame.buffer, level: this._level }, [this._frame.buffer]);
        this._fresh();
      }
    }
    return true;
  }
}

registerProcessor("open-speech-capture", OpenSpeechCapture);
