// The rules of the game, without network or display. The table is 1 wide and HEIGHT high; paddles move vertically.

export const HEIGHT = 0.6;
export const PADDLE = 0.14;
export const PADDLE_X = 0.03;
export const BALL = 0.012;
export const GOAL = 7;

const FIRST_SPEED = 0.55;
const LAST_SPEED = 1.3;
const FASTER = 1.05;
const STEEPEST = 0.9;
const PAUSE_S = 1;
/** How far the ball may be outside of the table: one long step at the last speed. */
const MARGIN = 0.2;

/** A new game: `paddles` and `score` of the left and the right player, and the ball that waits in the middle. */
export function newGame() {
  return { paddles: [HEIGHT / 2, HEIGHT / 2], score: [0, 0], ball: serve(Math.random() < 0.5 ? -1 : 1), pause: PAUSE_S };
}

/** The side that has won, or -1. */
export function winner(game) {
  return game.score.findIndex((points) => points >= GOAL);
}

/** The position of a paddle within the table. */
export function clampPaddle(y) {
  return Math.min(Math.max(y, PADDLE / 2), HEIGHT - PADDLE / 2);
}

/** Whether a ball, a score and a pause that another player sent can be those of a game. */
export function isPossible({ ball, score, pause }) {
  const within = (value, low, high) => Number.isFinite(value) && value >= low && value <= high;
  return (
    within(ball?.x, -MARGIN, 1 + MARGIN) &&
    within(ball?.y, -MARGIN, HEIGHT + MARGIN) &&
    within(Math.hypot(ball?.vx, ball?.vy), 0, LAST_SPEED * 1.01) &&
    Array.isArray(score) &&
    score.length === 2 &&
    score.every((points) => Number.isInteger(points) && points >= 0 && points <= GOAL) &&
    within(pause, -PAUSE_S, PAUSE_S)
  );
}

/** Moves the game on by `seconds`. */
export function step(game, seconds) {
  if (winner(game) >= 0) return;
  if (game.pause > 0) {
    game.pause -= seconds;
    return;
  }
  moveBall(game.ball, seconds);
  bounce(game, 0);
  bounce(game, 1);
  if (game.ball.x < -BALL) score(game, 1);
  else if (game.ball.x > 1 + BALL) score(game, 0);
}

/** Moves the ball between the walls; also the guest's guess of where the host's ball is by now. */
export function moveBall(ball, seconds) {
  ball.x += ball.vx * seconds;
  ball.y += ball.vy * seconds;
  if ((ball.y < BALL && ball.vy < 0) || (ball.y > HEIGHT - BALL && ball.vy > 0)) ball.vy = -ball.vy;
}

/** The farther from its middle a paddle hits the ball, the steeper the ball leaves. */
function bounce({ ball, paddles }, side) {
  const approaches = side === 0 ? ball.vx < 0 : ball.vx > 0;
  const distance = side === 0 ? ball.x - PADDLE_X : 1 - PADDLE_X - ball.x;
  const offset = (ball.y - paddles[side]) / (PADDLE / 2);
  if (!approaches || distance > BALL || distance < -3 * BALL || Math.abs(offset) > 1.15) return;
  const speed = Math.min(Math.hypot(ball.vx, ball.vy) * FASTER, LAST_SPEED);
  const angle = offset * STEEPEST;
  ball.vx = Math.cos(angle) * speed * (side === 0 ? 1 : -1);
  ball.vy = Math.sin(angle) * speed;
}

function score(game, side) {
  game.score[side] += 1;
  game.ball = serve(side === 0 ? 1 : -1);
  game.pause = PAUSE_S;
}

function serve(direction) {
  const angle = (Math.random() - 0.5) * 0.8;
  return {
    x: 0.5,
    y: HEIGHT / 2,
    vx: Math.cos(angle) * FIRST_SPEED * direction,
    vy: Math.sin(angle) * FIRST_SPEED,
  };
}
