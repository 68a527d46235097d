//! The cost of the program for each direction and pair of families. It is shown by
//! `cargo test --test offload -- --ignored --nocapture`.

use crate::example::{DIRECTIONS, FAMILIES, entry};
use crate::frame::{Frame, channel_data};
use crate::kernel::Kernel;
use crate::layout::{Direction, Entry};

/// A repeated run gets the frame that the run before it left. So each frame here becomes one that has an entry again,
/// as often as the headroom and the nested channel headers suffice.
const RUNS: u32 = 48;
const ROUNDS: usize = 100;
/// Not a number with which the program looks for a client.
const NO_CHANNEL: u16 = 0x8000;
const CHANNEL: u16 = 0x4001;

#[test]
#[ignore = "measures, and asserts nothing"]
fn cost_of_a_packet() {
    let Some(mut kernel) = Kernel::load() else { return };
    let info = kernel.program("relay").info().unwrap();
    println!("verified instructions: {:?}", info.verified_instruction_count());
    println!("translated bytes: {:?}, compiled bytes: {}", info.size_translated(), info.size_jitted());
    let data = [0x90; 160];
    let unknown = entry(Direction::ToClient, true, true).received;
    let frame = Frame::new(unknown.source, unknown.destination, &data).bytes();
    println!("pass_all: {}", cost(&mut kernel, "pass_all", &frame));
    println!("no entry: {}", cost(&mut kernel, "relay", &frame));
    for direction in DIRECTIONS {
        for (first, second) in FAMILIES {
            let cost = cost_of(&mut kernel, direction, first, second, &data);
            println!("{direction:?}, {}: {cost}", name(first, second));
        }
    }
}

fn name(first: bool, second: bool) -> String {
    let name = |v4| if v4 { "IPv4" } else { "IPv6" };
    match first == second {
        true => name(first).to_owned(),
        false => "IPv4 to IPv6 and back".to_owned(),
    }
}

/// Measures packets of one direction that alternate between two families.
fn cost_of(kernel: &mut Kernel, direction: Direction, first: bool, second: bool, data: &[u8]) -> String {
    let mut payload = data.to_vec();
    let channel = match direction {
        Direction::ToPeer => CHANNEL,
        Direction::ToClient => NO_CHANNEL,
    };
    if direction == Direction::ToPeer {
        for _ in 0..RUNS + 1 {
            payload = channel_data(channel, &payload);
        }
    }
    let mut there = Entry { channel, slot: 1, ..entry(direction, first, second) };
    let mut back = Entry { channel, slot: 2, ..entry(direction, second, first) };
    (back.received.source, back.received.destination) = (there.sent.source, there.sent.destination);
    (back.sent.source, back.sent.destination) = (there.received.source, there.received.destination);
    // The frame that is sent is the next one that is received.
    for entry in [&mut there, &mut back] {
        entry.sent.link_destination = entry.sent.link_source;
    }
    kernel.insert(&there);
    kernel.insert(&back);
    let mut frame = Frame::new(there.received.source, there.received.destination, &payload);
    frame.hop_limit = 255;
    let before = kernel.counter(1).packets + kernel.counter(2).packets;
    let cost = cost(kernel, "relay", &frame.bytes());
    let relayed = kernel.counter(1).packets + kernel.counter(2).packets - before;
    assert_eq!(relayed, u64::from(RUNS) * ROUNDS as u64, "every run relays");
    kernel.remove(&there);
    kernel.remove(&back);
    cost
}

/// Returns the least and the median duration of a run.
fn cost(kernel: &mut Kernel, program: &str, frame: &[u8]) -> String {
    let mut times: Vec<_> = (0..ROUNDS).map(|_| kernel.time(program, frame, RUNS)).collect();
    times.sort();
    format!("{:?} at least, median {:?}", times[0], times[ROUNDS / 2])
}
