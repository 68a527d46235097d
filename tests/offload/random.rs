//! Random and mutated packets: the program and the shadow decide alike and produce the same bytes.
//!
//! `OFFLOAD_SEED=7 cargo test --test offload random` runs one seed again.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use crate::frame::{Checksum, Frame, channel_data, sum};
use crate::kernel::{HEADROOM, Kernel, LEASED, LINKS, OWN_INTERFACE, SLOTS, Verdict};
use crate::layout::{Direction, ENTRY, Entry, Outcome, Received, Sent};
use crate::shadow::{PAST, Shadow};

const SEEDS: u64 = 4;
/// With each seed.
const PACKETS: usize = 100_000;
/// After so many packets one entry is replaced.
const PACKETS_PER_ENTRY: usize = 20;
const ENTRIES: usize = 96;

#[test]
fn random_and_mutated_packets_are_treated_as_the_shadow_says() {
    let seeds = match std::env::var("OFFLOAD_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..SEEDS).collect(),
    };
    for seed in seeds {
        let Some(kernel) = Kernel::load() else { return };
        println!("OFFLOAD_SEED={seed}");
        compare(kernel, seed);
    }
}

/// Compares the program with the shadow on packets that the seed determines.
fn compare(mut kernel: Kernel, seed: u64) {
    let limits_headroom = kernel.can_limit_headroom();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut shadow = Shadow::default();
    let mut entries: Vec<Entry> = Vec::new();
    let mut verdicts = HashMap::<Verdict, usize>::new();
    for number in 0..PACKETS {
        if entries.len() < ENTRIES || number % PACKETS_PER_ENTRY == 0 {
            replace_an_entry(&mut rng, &mut kernel, &mut shadow, &mut entries);
        }
        let entry = &entries[rng.random_range(0..entries.len())];
        let frame = random_frame(&mut rng, entry);
        let metadata = if limits_headroom { random_metadata(&mut rng) } else { 0 };
        let expected = shadow.run(metadata, &frame);
        let actual = kernel.run_with_metadata(metadata, &frame);
        assert_eq!(actual, expected, "packet {number}: {frame:02x?} with {metadata} bytes of metadata, {entry:?}");
        *verdicts.entry(actual.0).or_default() += 1;
    }
    println!("{verdicts:?}");
    for outcome in Outcome::ALL {
        let expected = shadow.outcomes.get(&outcome).copied().unwrap_or_default();
        println!("{outcome:?}: {expected}");
        assert_eq!(kernel.outcome(outcome), expected, "{outcome:?}");
        // A frame of this test never lacks room after it.
        let is_reached = match outcome {
            Outcome::NoHeadroom => limits_headroom,
            Outcome::NoTailroom => false,
            _ => true,
        };
        assert!(expected > 100 || !is_reached, "the packets reach {outcome:?}");
    }
    for slot in 0..SLOTS {
        let expected = shadow.counters.get(&slot).copied().unwrap_or_default();
        let actual = kernel.counter(slot);
        assert_eq!((actual.packets, actual.bytes), (expected.packets, expected.bytes), "slot {slot}");
    }
}

fn replace_an_entry(rng: &mut StdRng, kernel: &mut Kernel, shadow: &mut Shadow, entries: &mut Vec<Entry>) {
    if entries.len() >= ENTRIES {
        let old = entries.swap_remove(rng.random_range(0..entries.len()));
        kernel.remove(&old);
        shadow.remove(old.direction, &old.key());
    }
    let entry = random_entry(rng);
    let mut value = entry.value();
    if rng.random_ratio(1, 12) {
        value[rng.random_range(0..ENTRY)] ^= 1 << rng.random_range(0..8);
    }
    kernel.insert_bytes(entry.direction, entry.key(), value).unwrap();
    shadow.insert(entry.direction, entry.key(), value);
    entries.retain(|other| (other.direction, other.key()) != (entry.direction, entry.key()));
    entries.push(entry);
    if rng.random_ratio(1, 8) {
        let (interface, address) = (OWN_INTERFACE + LINKS * rng.random_range(0..2), random_link_address(rng));
        kernel.link(interface, address);
        shadow.link(interface, address);
    }
}

/// Few link addresses, so that many frames are addressed to the right one.
fn random_link_address(rng: &mut StdRng) -> [u8; 6] {
    [2, 0, 0, 0, 0, rng.random_range(1..3)]
}

fn random_entry(rng: &mut StdRng) -> Entry {
    let (received_v4, sent_v4) = (rng.random(), rng.random());
    Entry {
        direction: if rng.random() { Direction::ToPeer } else { Direction::ToClient },
        received: Received { source: random_socket(rng, received_v4), destination: random_socket(rng, received_v4) },
        sent: Sent {
            source: random_socket(rng, sent_v4),
            destination: random_socket(rng, sent_v4),
            interface: if rng.random() { OWN_INTERFACE } else { rng.random_range(2..100) },
            is_redirected: rng.random_ratio(1, 4),
            link_destination: rng.random(),
            link_source: random_link_address(rng),
            longest_packet: if rng.random_ratio(1, 4) { rng.random_range(28..200) } else { 1500 },
            flow_label: rng.random_range(0..1 << 20),
            identification: rng.random(),
        },
        channel: rng.random_range(0x4000..0x8000),
        expires: if rng.random_ratio(1, 12) { rng.random_range(0..=PAST) } else { u64::MAX - rng.random_range(0..9) },
        slot: if rng.random_ratio(1, 12) { SLOTS + rng.random_range(0..3) } else { rng.random_range(0..SLOTS) },
        worker: if rng.random_ratio(1, 12) { rng.random_range(LEASED - 2..=LEASED + 1) } else { LEASED },
    }
}

/// Few hosts, so that packets of one entry are close to those of others. Some have extreme values.
fn random_socket(rng: &mut StdRng, v4: bool) -> SocketAddr {
    let ip = match (v4, rng.random_range(0..4)) {
        (true, 0) => IpAddr::from([255, 255, 255, rng.random_range(253..255)]),
        (true, _) => Ipv4Addr::new(10, 0, 0, rng.random_range(1..4)).into(),
        (false, 0) => IpAddr::from([0xff; 16]),
        (false, 1) => IpAddr::from(rng.random::<[u8; 16]>()),
        (false, _) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, rng.random_range(1..4)).into(),
    };
    let port = match rng.random_range(0..4) {
        0 => 0xffff,
        1 => rng.random(),
        _ => rng.random_range(1..4),
    };
    SocketAddr::new(ip, port)
}

fn random_frame(rng: &mut StdRng, entry: &Entry) -> Vec<u8> {
    if rng.random_ratio(1, 50) {
        let mut bytes = vec![0; rng.random_range(14..200)];
        rng.fill_bytes(&mut bytes);
        return bytes;
    }
    let length = match rng.random_range(0..10) {
        0..=3 => rng.random_range(0..24),
        4..=8 => rng.random_range(0..260),
        _ => rng.random_range(1200..1490),
    };
    let mut data = vec![0; length];
    // Equal bytes give extreme checksums.
    match rng.random_range(0..4) {
        0 => {}
        1 => data.fill(0xff),
        _ => rng.fill_bytes(&mut data),
    }
    if rng.random_ratio(1, 8) {
        // A STUN message, or nearly.
        let class = if rng.random() { 0x100 } else { 0 } | if rng.random() { 0x10 } else { 0 };
        let method: u16 = rng.random_range(0..16);
        let start: [u8; 8] = [0, 0, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        data.splice(..length.min(8), start[..length.min(8)].iter().copied());
        if let Some(kind) = data.get_mut(..2) {
            kind.copy_from_slice(&(method | class).to_be_bytes());
        }
        if let Some(byte) = data.get_mut(rng.random_range(0..32))
            && rng.random_ratio(1, 4)
        {
            *byte ^= 1 << rng.random_range(0..8);
        }
    }
    let payload = match entry.direction {
        Direction::ToPeer => channel_data(entry.channel, &data),
        Direction::ToClient => data,
    };
    let mut frame = Frame::new(entry.received.source, entry.received.destination, &payload);
    frame.traffic_class = rng.random();
    frame.hop_limit = if rng.random_ratio(1, 16) { rng.random_range(0..3) } else { rng.random() };
    frame.flow_label = rng.random_range(0..1 << 20);
    frame.identification = rng.random();
    frame.dont_fragment = rng.random();
    frame.checksum = match rng.random_range(0..16) {
        0..=1 => Checksum::Zero,
        2 => Checksum::PseudoHeader,
        _ => Checksum::Whole,
    };
    frame.link_destination = match rng.random_range(0..8) {
        0 => random_link_address(rng),
        _ => entry.sent.link_source,
    };
    if rng.random_ratio(1, 32) {
        frame.link_destination[rng.random_range(0..6)] ^= 1 << rng.random_range(0..8);
    }
    if rng.random_ratio(1, 40) {
        // Not the packet that has an entry.
        (frame.source, frame.destination) = (mapped(frame.source), mapped(frame.destination));
    }
    frame.link_destination[0] &= if rng.random_ratio(1, 32) { 0xff } else { 0xfe };
    let mut bytes = if rng.random() { frame.padded() } else { frame.bytes() };
    if rng.random_ratio(1, 16) {
        let padding: [u8; 64] = rng.random();
        bytes.extend(&padding[..rng.random_range(0..64)]);
    }
    if rng.random_ratio(1, 2) {
        mutate(rng, &mut bytes, if frame.source.is_ipv4() { 34 } else { 54 });
    }
    bytes
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Changes bytes of the headers, mostly so that the packet still has its entry.
fn mutate(rng: &mut StdRng, bytes: &mut Vec<u8>, udp: usize) {
    for _ in 0..rng.random_range(1..3) {
        let place = match rng.random_range(0..8) {
            0 => rng.random_range(0..bytes.len()),
            // The lengths of IP and UDP, the checksum, and the channel header.
            1..=3 => udp + rng.random_range(4..16),
            4 => 16 + rng.random_range(0..4),
            5 => rng.random_range(12..udp),
            6 => {
                bytes.truncate(rng.random_range(14..=bytes.len().max(15)));
                continue;
            }
            _ => rng.random_range(14..26),
        };
        let Some(byte) = bytes.get_mut(place) else { continue };
        match rng.random_range(0..3) {
            0 => *byte ^= 1 << rng.random_range(0..8),
            1 => *byte = byte.wrapping_add(rng.random_range(0..9)).wrapping_sub(4),
            _ => *byte = rng.random(),
        }
    }
    // With the right checksum of the header, other checks are reached.
    if udp == 34 && bytes.len() >= 34 && rng.random_ratio(7, 8) {
        bytes[24..26].fill(0);
        let checksum = !sum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// The kernel accepts a multiple of four bytes.
fn random_metadata(rng: &mut StdRng) -> usize {
    match rng.random_range(0..8) {
        0 => HEADROOM - 4 * rng.random_range(0..8),
        _ => 0,
    }
}
