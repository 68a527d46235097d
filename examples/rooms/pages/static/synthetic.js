import { every } from "./ticker.js";

const WIDTH = 960;
const HEIGHT = 540;
/** Of the drawing; the picture is small, so that one computer can take many participants. */
const SCALE = 2 / 3;
const FRAME_MS = 1000 / 15;

/**
 * A test picture and a tone in place of camera and microphone: for machines without devices, and for tests.
 *
 * Returns `{audio, video, stop}`. The picture moves and shows the time, so that a viewer sees delay and freezes.
 */
export function synthesize(name) {
  const hue = [...name].reduce((sum, character) => (sum * 31 + character.codePointAt(0)) % 360, 7);
  const picture = drawPicture(name, hue);
  const tone = playTone(220 + hue / 2);
  return {
    audio: tone.track,
    video: picture.track,
    stop() {
      picture.stop();
      tone.stop();
    },
  };
}

/** The picture and the sound of a screen, for tests of screen sharing without a dialog. */
export function synthesizeScreen(name) {
  const picture = drawPicture(`${name}’s screen`, 210);
  const tone = playTone(660);
  picture.track.addEventListener("ended", picture.stop);
  return {
    stream: new MediaStream([picture.track, tone.track]),
    stop() {
      picture.stop();
      tone.stop();
    },
  };
}

function drawPicture(name, hue) {
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH * SCALE;
  canvas.height = HEIGHT * SCALE;
  const context = canvas.getContext("2d", { alpha: false });
  context.scale(SCALE, SCALE);
  const draw = () => paint(context, name, hue, performance.now() / 1000);
  draw();
  const end = every(FRAME_MS, draw);
  const [track] = canvas.captureStream(1000 / FRAME_MS).getVideoTracks();
  return {
    track,
    stop() {
      end();
      track.stop();
    },
  };
}

function paint(context, name, hue, seconds) {
  const sky = context.createLinearGradient(0, 0, WIDTH, HEIGHT);
  sky.addColorStop(0, `hsl(${hue} 55% 34%)`);
  sky.addColorStop(1, `hsl(${hue + 50} 60% 18%)`);
  context.fillStyle = sky;
  context.fillRect(0, 0, WIDTH, HEIGHT);

  for (let wave = 0; wave < 3; wave += 1) {
    context.fillStyle = `hsl(${hue + 20 * wave} 60% ${46 - 10 * wave}% / 45%)`;
    context.beginPath();
    context.moveTo(0, HEIGHT);
    for (let x = 0; x <= WIDTH; x += 24) {
      const y = Math.sin(x / 130 + seconds * (0.9 + wave / 3) + wave * 2) * 34;
      context.lineTo(x, HEIGHT * (0.62 + wave * 0.12) + y);
    }
    context.lineTo(WIDTH, HEIGHT);
    context.fill();
  }

  const angle = seconds * 1.3;
  context.fillStyle = `hsl(${hue + 180} 80% 74%)`;
  context.beginPath();
  context.arc(WIDTH / 2 + Math.cos(angle) * 330, 170 + Math.sin(angle) * 70, 30, 0, Math.PI * 2);
  context.fill();

  context.fillStyle = "#fff";
  context.textAlign = "center";
  context.font = "600 58px system-ui, sans-serif";
  context.fillText(name, WIDTH / 2, 290, WIDTH - 320);
  context.font = "34px ui-monospace, monospace";
  context.fillText(new Date().toISOString().slice(11, 22), WIDTH / 2, 346);
}

function playTone(frequency) {
  const audio = new AudioContext();
  // Without a gesture of the user, the browser keeps the tone silent until there is one.
  const ended = new AbortController();
  for (const type of ["pointerdown", "keydown"]) {
    addEventListener(type, () => audio.resume(), { once: true, signal: ended.signal });
  }

  const oscillator = new OscillatorNode(audio, { frequency });
  const pulse = new OscillatorNode(audio, { frequency: 0.5 });
  const gain = new GainNode(audio, { gain: 0.04 });
  const depth = new GainNode(audio, { gain: 0.04 });
  const output = new MediaStreamAudioDestinationNode(audio);
  pulse.connect(depth).connect(gain.gain);
  oscillator.connect(gain).connect(output);
  oscillator.start();
  pulse.start();
  const [track] = output.stream.getAudioTracks();
  return {
    track,
    stop() {
      ended.abort();
      track.stop();
      audio.close();
    },
  };
}
