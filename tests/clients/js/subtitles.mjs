// Lists of finals in, as a JSON line each; their subtitles out. Argument: module.
import { createInterface } from "node:readline";

const { srt, vtt } = await import(process.argv[2]);
for await (const line of createInterface({ input: process.stdin })) {
  const finals = JSON.parse(line);
  console.log(JSON.stringify({ srt: srt(finals), vtt: vtt(finals) }));
}
