// Run with Node's `openai` and `ws`: REST and Realtime over TLS. Prints three transcripts, one a line.
import fs from "node:fs";
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";

const [url, pcm, file] = process.argv.slice(2);
const client = new OpenAI({ apiKey: "any", baseURL: url + "/v1" });
const answer = await client.audio.transcriptions.create({ file: fs.createReadStream(file), model: "whisper-1" });
console.log(answer.text);
let streamed = "";
for await (const event of await client.audio.transcriptions.create({
  file: fs.createReadStream(file), model: "whisper-1", stream: true,
})) if (event.type === "transcript.text.delta") streamed += event.delta;
console.log(streamed);

const rt = new OpenAIRealtimeWS({ intent: "transcription" }, client);
const audio = fs.readFileSync(pcm);
let told = "";
await new Promise((resolve, reject) => {
  rt.on("error", reject);
  rt.on("session.created", () => rt.send({
    type: "session.update",
    session: { type: "transcription", audio: { input: {
      transcription: { model: "whisper-1" },
      turn_detection: { type: "server_vad", silence_duration_ms: 400 },
    } } },
  }));
  rt.on("session.updated", () => {
    for (let at = 0; at < audio.length; at += 4800)
      rt.send({ type: "input_audio_buffer.append", audio: audio.subarray(at, at + 4800).toString("base64") });
  });
  rt.on("conversation.item.input_audio_transcription.delta", (event) => { told += event.delta; });
  rt.on("conversation.item.input_audio_transcription.completed", (event) => {
    if (event.transcript !== told) reject(new Error(`${told} is not ${event.transcript}`));
    console.log(event.transcript);
    resolve();
  });
});
rt.close();
