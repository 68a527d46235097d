//! What the program passes to user space unchanged, one test for each reason.

use std::net::{IpAddr, SocketAddr};

use crate::example::{CHANNEL, all, received, sent};
use crate::frame::{Checksum, Frame, OWN_LINK_ADDRESS, channel_data, sum};
use crate::kernel::{HEADROOM, Kernel, LINKS, OWN_INTERFACE, SLOTS, Verdict};
use crate::layout::{Direction, ENTRY, Entry, Outcome};

const DATA: &[u8] = b"application data of some length, so that no frame is padded";

/// Asserts that a frame passes unchanged, and is counted as `outcome`. `None`: it has no entry.
#[track_caller]
fn assert_passes(kernel: &mut Kernel, frame: &[u8], outcome: Option<Outcome>) {
    let counts = |kernel: &Kernel| Outcome::ALL.map(|outcome| kernel.outcome(outcome));
    let mut expected = counts(kernel);
    if let Some(outcome) = outcome {
        expected[outcome as usize] += 1;
    }
    assert_eq!(kernel.run(frame), (Verdict::Pass, frame.to_vec()));
    assert_eq!(counts(kernel), expected, "{outcome:?}");
    assert_eq!(kernel.counter(7).packets, 0);
}

/// Runs a test with each entry that `filter` accepts in the map.
fn with_each(filter: impl Fn(&Entry) -> bool, mut test: impl FnMut(&mut Kernel, &Entry)) {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all().filter(filter) {
        kernel.insert(&entry);
        test(&mut kernel, &entry);
        kernel.remove(&entry);
    }
}

fn any(_: &Entry) -> bool {
    true
}

fn from_v4(entry: &Entry) -> bool {
    entry.received.source.is_ipv4()
}

fn from_v6(entry: &Entry) -> bool {
    entry.received.source.is_ipv6()
}

/// Returns the place of the UDP header in a frame of the entry.
fn udp(entry: &Entry) -> usize {
    if from_v4(entry) { 34 } else { 54 }
}

/// Changes a byte and makes the checksum of the IPv4 header right.
fn with_byte(entry: &Entry, mut frame: Vec<u8>, place: usize, change: impl Fn(u8) -> u8) -> Vec<u8> {
    frame[place] = change(frame[place]);
    if from_v4(entry) {
        frame[24..26].fill(0);
        let checksum = !sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}

#[test]
fn packets_without_an_entry_pass() {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all() {
        assert_passes(&mut kernel, &received(&entry, DATA).bytes(), None);
    }
}

#[test]
fn every_part_of_the_key_counts() {
    with_each(any, |kernel, entry| {
        let other: IpAddr = if from_v4(entry) { "198.51.100.9" } else { "2001:db8:9::1" }.parse().unwrap();
        let changes: [&dyn Fn(&mut Frame); 5] = [
            &|frame| frame.source.set_port(1),
            &|frame| frame.destination.set_port(1),
            &|frame| frame.source.set_ip(other),
            &|frame| frame.destination.set_ip(other),
            &|frame| std::mem::swap(&mut frame.source, &mut frame.destination),
        ];
        for change in changes {
            let mut frame = received(entry, DATA);
            change(&mut frame);
            assert_passes(kernel, &frame.bytes(), None);
        }
        if entry.direction == Direction::ToPeer {
            let mut frame = received(entry, DATA);
            frame.payload = channel_data(CHANNEL + 1, DATA);
            assert_passes(kernel, &frame.bytes(), None);
        }
    });
}

#[test]
fn stun_of_the_client_passes() {
    with_each(
        |entry| entry.direction == Direction::ToPeer,
        |kernel, entry| {
            let refresh = [&[0, 4, 0, 0, 0x21, 0x12, 0xa4, 0x42], &[7; 12][..]].concat();
            let frame = Frame::new(entry.received.source, entry.received.destination, &refresh).bytes();
            assert_passes(kernel, &frame, None);
        },
    );
}

#[test]
fn truncated_frames_pass() {
    with_each(any, |kernel, entry| {
        let frame = received(entry, DATA).bytes();
        for length in 14..frame.len() {
            let has_entry = match entry.direction {
                Direction::ToPeer => length >= udp(entry) + 12,
                Direction::ToClient => length >= udp(entry) + 8,
            };
            assert_passes(kernel, &frame[..length], has_entry.then_some(Outcome::Malformed));
        }
    });
}

#[test]
fn other_protocols_and_vlan_tags_pass() {
    with_each(any, |kernel, entry| {
        let frame = received(entry, DATA).bytes();
        for ethertype in [[0x81, 0x00], [0x88, 0xa8], [0x08, 0x06], [0, 46]] {
            let mut other = frame.clone();
            other[12..14].copy_from_slice(&ethertype);
            assert_passes(kernel, &other, None);
        }
        let tagged = [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat();
        assert_passes(kernel, &tagged, None);
        let protocol = if from_v4(entry) { 23 } else { 20 };
        for other in [0, 6, 43, 44, 60, 136] {
            assert_passes(kernel, &with_byte(entry, frame.clone(), protocol, |_| other), None);
        }
        assert_passes(kernel, &with_byte(entry, frame.clone(), 14, |byte| byte ^ 0x10), None);
    });
}

#[test]
fn ipv4_options_pass() {
    with_each(from_v4, |kernel, entry| {
        let frame = received(entry, DATA).bytes();
        let mut with_option = [&frame[..34], &[1, 1, 1, 1], &frame[34..]].concat();
        with_option[14] = 0x46;
        with_option[17] += 4;
        with_option[24..26].fill(0);
        let checksum = !sum(&with_option[14..38]);
        with_option[24..26].copy_from_slice(&checksum.to_be_bytes());
        assert_passes(kernel, &with_option, None);
        assert_passes(kernel, &with_byte(entry, frame.clone(), 14, |_| 0x46), None);
        assert_passes(kernel, &with_byte(entry, frame, 14, |_| 0x44), None);
    });
}

#[test]
fn ipv4_fragments_pass() {
    with_each(from_v4, |kernel, entry| {
        let frame = received(entry, DATA).bytes();
        for (place, value) in [(20, 0x20), (20, 0x80), (20, 0x01), (20, 0x60), (21, 0x01), (21, 0xff)] {
            assert_passes(kernel, &with_byte(entry, frame.clone(), place, |_| value), None);
        }
    });
}

#[test]
fn a_wrong_ipv4_header_checksum_passes() {
    with_each(from_v4, |kernel, entry| {
        let frame = received(entry, DATA).bytes();
        // Each field that the key does not include.
        for place in [15, 18, 19, 22, 24, 25] {
            let mut wrong = frame.clone();
            wrong[place] ^= 0x20;
            assert_passes(kernel, &wrong, Some(Outcome::Malformed));
        }
    });
}

#[test]
fn lengths_that_disagree_pass() {
    with_each(any, |kernel, entry| {
        let udp = udp(entry);
        let ip_length = if from_v4(entry) { 17 } else { 19 };
        let mut frame = received(entry, DATA).bytes();
        frame.extend([0; 4]);
        let places = match entry.direction {
            Direction::ToPeer => vec![ip_length, udp + 5, udp + 11],
            Direction::ToClient => vec![ip_length, udp + 5],
        };
        for place in places {
            for by in [1, 2, 255, 128] {
                let wrong = with_byte(entry, frame.clone(), place, |byte| byte.wrapping_add(by));
                assert_passes(kernel, &wrong, Some(Outcome::Malformed));
                let high = with_byte(entry, frame.clone(), place - 1, |byte| byte.wrapping_add(by));
                assert_passes(kernel, &high, Some(Outcome::Malformed));
            }
        }
    });
}

#[test]
fn lengths_shorter_than_their_headers_pass() {
    with_each(any, |kernel, entry| {
        let udp = udp(entry);
        let ip_length = if from_v4(entry) { 17 } else { 19 };
        let header = if from_v4(entry) { 20 } else { 0 };
        let shortest = if entry.direction == Direction::ToPeer { 12 } else { 8 };
        for length in 0..shortest {
            let frame = with_byte(entry, received(entry, &[]).padded(), udp + 5, |_| length);
            let frame = with_byte(entry, frame, ip_length, |_| header + length);
            assert_passes(kernel, &frame, Some(Outcome::Malformed));
        }
    });
}

// RFC 8656 §12.5: over UDP, padding after the data is allowed. User space removes it.
#[test]
fn padded_channel_data_passes() {
    with_each(
        |entry| entry.direction == Direction::ToPeer,
        |kernel, entry| {
            let mut message = channel_data(CHANNEL, DATA);
            message.push(0);
            let frame = Frame::new(entry.received.source, entry.received.destination, &message).bytes();
            assert_passes(kernel, &frame, Some(Outcome::Malformed));
        },
    );
}

// RFC 8656 §21.1.7
#[test]
fn a_hop_limit_that_has_run_out_passes() {
    with_each(any, |kernel, entry| {
        for hop_limit in [0, 1] {
            let mut frame = received(entry, DATA);
            frame.hop_limit = hop_limit;
            assert_passes(kernel, &frame.bytes(), Some(Outcome::HopLimit));
        }
    });
}

#[test]
fn every_message_of_turn_passes() {
    with_each(any, |kernel, entry| {
        for method in [3, 4, 6, 7, 8, 9, 10, 11, 12] {
            for class in [0x000, 0x010, 0x100, 0x110] {
                let kind: u16 = method | class;
                let message = [&kind.to_be_bytes()[..], &[0, 0, 0x21, 0x12, 0xa4, 0x42]].concat();
                assert_passes(kernel, &received(entry, &message).padded(), Some(Outcome::TurnMessage));
            }
        }
    });
}

#[test]
fn a_packet_longer_than_the_interface_sends_passes() {
    let Some(mut kernel) = Kernel::load() else { return };
    for mut entry in all() {
        let length = sent(&kernel, &entry, DATA).bytes().len() - 14;
        entry.sent.longest_packet = u16::try_from(length - 1).unwrap();
        kernel.insert(&entry);
        assert_passes(&mut kernel, &received(&entry, DATA).bytes(), Some(Outcome::TooLong));
        kernel.remove(&entry);
    }
}

// RFC 8200 §8.1: UDP over IPv6 has a checksum.
#[test]
fn a_checksum_of_zero_passes_where_ipv6_is_involved() {
    with_each(
        |entry| from_v6(entry) || entry.sent.source.is_ipv6(),
        |kernel, entry| {
            let mut frame = received(entry, DATA);
            frame.checksum = Checksum::Zero;
            assert_passes(kernel, &frame.bytes(), Some(Outcome::NoChecksum));
        },
    );
}

// A device would have to complete it.
#[test]
fn a_checksum_of_the_pseudo_header_alone_passes() {
    with_each(any, |kernel, entry| {
        for length in [0, 1, 20, 700, 1400] {
            let mut frame = received(entry, &vec![0xa5; length]);
            frame.checksum = Checksum::PseudoHeader;
            assert_passes(kernel, &frame.padded(), Some(Outcome::PartialChecksum));
        }
    });
}

#[test]
fn packets_of_an_expired_entry_pass() {
    let Some(mut kernel) = Kernel::load() else { return };
    for mut entry in all() {
        for expires in [0, 1, 1_000_000] {
            entry.expires = expires;
            kernel.insert(&entry);
            assert_passes(&mut kernel, &received(&entry, DATA).bytes(), Some(Outcome::Expired));
        }
        kernel.remove(&entry);
    }
}

#[test]
fn packets_of_a_replaced_entry_pass() {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all() {
        let frame = received(&entry, DATA).bytes();
        for place in 0..ENTRY {
            let mut value = entry.value();
            value[place] ^= 0x10;
            kernel.insert_bytes(entry.direction, entry.key(), value).unwrap();
            assert_passes(&mut kernel, &frame, Some(Outcome::Replaced));
        }
        kernel.remove(&entry);
    }
}

// The kernel may write the words of an entry in any order, so any of them may be those of another entry.
#[test]
fn packets_of_an_entry_with_words_of_another_one_pass() {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all() {
        let frame = received(&entry, DATA).bytes();
        let mut other = entry;
        other.sent.source.set_port(9);
        other.sent.destination.set_port(9);
        other.sent.link_destination = [9; 6];
        (other.expires, other.slot, other.sent.interface) = (u64::MAX - 1, 9, 9);
        let (value, other) = (entry.value(), other.value());
        let words: Vec<usize> =
            (0..ENTRY / 8).filter(|word| value[8 * word..][..8] != other[8 * word..][..8]).collect();
        // With none and with all of them, it is a whole entry.
        for chosen in 1..(1_u32 << words.len()) - 1 {
            let mut torn = value;
            for (_, word) in words.iter().enumerate().filter(|(bit, _)| chosen >> bit & 1 == 1) {
                torn[8 * word..][..8].copy_from_slice(&other[8 * word..][..8]);
            }
            kernel.insert_bytes(entry.direction, entry.key(), torn).unwrap();
            assert_passes(&mut kernel, &frame, Some(Outcome::Replaced));
        }
        kernel.remove(&entry);
    }
}

#[test]
fn packets_without_a_counter_pass() {
    let Some(mut kernel) = Kernel::load() else { return };
    for mut entry in all() {
        for slot in [SLOTS, u32::MAX] {
            entry.slot = slot;
            kernel.insert(&entry);
            assert_passes(&mut kernel, &received(&entry, DATA).bytes(), Some(Outcome::NoCounter));
        }
        kernel.remove(&entry);
    }
}

#[test]
fn too_little_headroom_passes() {
    let Some(mut kernel) = Kernel::load() else { return };
    if !kernel.can_limit_headroom() {
        return;
    }
    for entry in all() {
        kernel.insert(&entry);
        let frame = received(&entry, DATA).bytes();
        let needed = sent(&kernel, &entry, DATA).bytes().len().saturating_sub(frame.len());
        if needed > 0 {
            let result = kernel.run_with_metadata(HEADROOM - needed + 4, &frame);
            assert_eq!(result, (Verdict::Pass, frame), "{entry:?}");
            assert_eq!(kernel.counter(entry.slot).packets, 0);
        }
        kernel.remove(&entry);
    }
    assert_eq!(kernel.outcome(Outcome::NoHeadroom), 4);
}

#[test]
fn frames_for_groups_of_link_addresses_pass() {
    with_each(any, |kernel, entry| {
        for first in [0x01, 0x33, 0xff] {
            let mut frame = received(entry, DATA);
            frame.link_destination[0] = first;
            assert_passes(kernel, &frame.bytes(), None);
        }
    });
}

#[test]
fn frames_for_other_hosts_pass() {
    with_each(any, |kernel, entry| {
        for place in 0..6 {
            let mut frame = received(entry, DATA);
            frame.link_destination[place] ^= 0x40;
            assert_passes(kernel, &frame.bytes(), Some(Outcome::OtherHost));
        }
    });
}

#[test]
fn frames_for_another_interface_of_this_machine_pass() {
    let Some(mut kernel) = Kernel::load() else { return };
    let sends = [2, 0, 0, 0, 0, 9];
    for mut entry in all() {
        (entry.sent.interface, entry.sent.link_source) = (OWN_INTERFACE + 1, sends);
        kernel.insert(&entry);
        let mut for_sender = received(&entry, DATA);
        for_sender.link_destination = sends;
        // Known is an interface that has the same place as the receiving one.
        kernel.link(OWN_INTERFACE + LINKS, OWN_LINK_ADDRESS);
        assert_passes(&mut kernel, &received(&entry, DATA).bytes(), Some(Outcome::OtherHost));
        kernel.link(OWN_INTERFACE, OWN_LINK_ADDRESS);
        assert_passes(&mut kernel, &for_sender.bytes(), Some(Outcome::OtherHost));
        kernel.remove(&entry);
    }
}

#[test]
fn ipv6_packets_with_ipv4_mapped_addresses_have_no_entry() {
    with_each(from_v4, |kernel, entry| {
        let mapped = |address: SocketAddr| match address.ip() {
            IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
            IpAddr::V6(_) => address,
        };
        let mut frame = received(entry, DATA);
        (frame.source, frame.destination) = (mapped(frame.source), mapped(frame.destination));
        assert_passes(kernel, &frame.bytes(), None);
    });
}

#[test]
fn the_second_program_passes_every_frame() {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all() {
        kernel.insert(&entry);
        let frame = received(&entry, DATA).bytes();
        assert_eq!(kernel.run_program("pass_all", 0, &frame), (Verdict::Pass, frame));
    }
}

#[test]
fn a_full_map_accepts_no_further_entry_and_keeps_its_own() {
    let Some(mut kernel) = Kernel::load() else { return };
    let mut entry = all().next().unwrap();
    let mut inserted = 0;
    for port in 1..=u16::MAX {
        entry.received.source.set_port(port);
        if kernel.insert_bytes(entry.direction, entry.key(), entry.value()).is_err() {
            break;
        }
        inserted = port;
    }
    assert_eq!(inserted, 1024);
    for port in 1..=inserted {
        entry.received.source.set_port(port);
        assert_eq!(kernel.run(&received(&entry, DATA).bytes()).0, Verdict::Transmit);
    }
}
