//! What the program relays, and how.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::example::{all, received, sent};
use crate::frame::{Checksum, Frame, OWN_LINK_ADDRESS, SHORTEST_FRAME};
use crate::kernel::{HEADROOM, Kernel, OWN_INTERFACE, Verdict};
use crate::layout::{Direction, Outcome};

/// The longest time between two ticks of the kernel, which are the program's clock.
const TICK: Duration = Duration::from_millis(10);
const DATA: &[u8] = b"application data of some length, so that no frame is padded";

// RFC 8656 §12.6, §12.7
#[test]
fn data_is_relayed_between_all_families_in_both_directions() {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all() {
        kernel.insert(&entry);
        let expected = sent(&kernel, &entry, DATA).bytes();
        assert_eq!(kernel.run(&received(&entry, DATA).bytes()), (Verdict::Transmit, expected), "{entry:?}");
        kernel.remove(&entry);
    }
}

// RFC 8656 §12.4: 0 is a valid length.
#[test]
fn data_of_every_length_is_relayed() {
    let Some(mut kernel) = Kernel::load() else { return };
    let data: Vec<u8> = (0..=u8::MAX).cycle().take(1500).collect();
    for entry in all() {
        kernel.insert(&entry);
        for length in (0..140).chain(1400..1440) {
            let expected = sent(&kernel, &entry, &data[..length]).padded();
            let actual = kernel.run(&received(&entry, &data[..length]).padded());
            assert_eq!(actual, (Verdict::Transmit, expected), "{length} bytes, {entry:?}");
        }
        kernel.remove(&entry);
    }
}

#[test]
fn frames_for_the_receiving_interface_are_redirected_to_another_one() {
    let Some(mut kernel) = Kernel::load() else { return };
    let sends = [2, 0, 0, 0, 0, 9];
    for known in [false, true] {
        if known {
            kernel.link(OWN_INTERFACE, OWN_LINK_ADDRESS);
        }
        for mut entry in all() {
            (entry.sent.interface, entry.sent.link_source) = (OWN_INTERFACE + 1, sends);
            kernel.insert(&entry);
            let expected = sent(&kernel, &entry, DATA).bytes();
            let mut frame = received(&entry, DATA);
            // The member of a bond is not known, and has the link address of the bond.
            frame.link_destination = if known { OWN_LINK_ADDRESS } else { sends };
            assert_eq!(kernel.run(&frame.bytes()), (Verdict::Redirect, expected), "{entry:?}");
            kernel.remove(&entry);
        }
    }
}

#[test]
fn another_interface_is_redirected_to() {
    let Some(mut kernel) = Kernel::load() else { return };
    for mut entry in all() {
        entry.sent.interface = OWN_INTERFACE + 1;
        kernel.insert(&entry);
        let expected = sent(&kernel, &entry, DATA).bytes();
        assert_eq!(kernel.run(&received(&entry, DATA).bytes()), (Verdict::Redirect, expected), "{entry:?}");
        kernel.remove(&entry);
    }
}

// RFC 8656 §13, §14: DSCP and ECN are those of the received packet; §21.1.7 for the hop limit. DF and the flow label
// are not copied.
#[test]
fn header_fields_are_those_of_user_space() {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all() {
        kernel.insert(&entry);
        for (traffic_class, hop_limit) in [(0, 2), (0xb8, 255), (0x01, 64), (0xff, 3), (0x0f, 128), (0xf0, 65)] {
            let mut frame = received(&entry, DATA);
            (frame.traffic_class, frame.hop_limit) = (traffic_class, hop_limit);
            (frame.dont_fragment, frame.flow_label, frame.identification) = (true, 0x1_2345, 0x7777);
            let mut expected = sent(&kernel, &entry, DATA);
            (expected.traffic_class, expected.hop_limit) = (traffic_class, hop_limit - 1);
            assert_eq!(kernel.run(&frame.bytes()), (Verdict::Transmit, expected.bytes()), "{entry:?}");
        }
        kernel.remove(&entry);
    }
}

// RFC 768: zero is "no checksum".
#[test]
fn a_checksum_of_zero_stays_zero_over_ipv4() {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all().filter(|entry| entry.received.source.is_ipv4() && entry.sent.source.is_ipv4()) {
        kernel.insert(&entry);
        let mut frame = received(&entry, DATA);
        frame.checksum = Checksum::Zero;
        let mut expected = sent(&kernel, &entry, DATA);
        expected.checksum = Checksum::Zero;
        assert_eq!(kernel.run(&frame.bytes()), (Verdict::Transmit, expected.bytes()), "{entry:?}");
    }
}

// RFC 768: a computed zero is sent as 0xffff.
#[test]
fn every_checksum_is_reached_and_none_becomes_zero() {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all() {
        kernel.insert(&entry);
        let udp = if entry.sent.source.is_ipv4() { 34 } else { 54 };
        let mut turns = 0;
        // Two bytes of data go through all sums.
        for number in 0..=u16::MAX {
            let data = number.to_be_bytes();
            let expected = sent(&kernel, &entry, &data).padded();
            let checksum = u16::from_be_bytes([expected[udp + 6], expected[udp + 7]]);
            // Around the turn of the sum, every value is tried; elsewhere one of 64.
            if !(64..u16::MAX - 64).contains(&checksum) || number % 64 == 0 {
                let frame = received(&entry, &data);
                // One of these checksums is that of the pseudo-header alone, and passes.
                let incomplete = Frame { checksum: Checksum::PseudoHeader, ..frame.clone() };
                if frame.padded() == incomplete.padded() {
                    continue;
                }
                turns += usize::from(checksum == 0xffff);
                let actual = kernel.run(&frame.padded());
                assert_eq!(actual, (Verdict::Transmit, expected), "{number}, {entry:?}");
            }
        }
        assert_ne!(turns, 0);
        kernel.remove(&entry);
    }
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all() {
        kernel.insert(&entry);
        let mut frame = received(&entry, DATA).bytes();
        *frame.last_mut().unwrap() ^= 1;
        let mut expected = sent(&kernel, &entry, DATA).bytes();
        *expected.last_mut().unwrap() ^= 1;
        assert_eq!(kernel.run(&frame), (Verdict::Transmit, expected), "{entry:?}");
        kernel.remove(&entry);
    }
}

#[test]
fn padding_of_any_length_is_cut() {
    let Some(mut kernel) = Kernel::load() else { return };
    for entry in all() {
        kernel.insert(&entry);
        for padding in [1, 2, 45, 100, 1000] {
            let mut frame = received(&entry, DATA).bytes();
            frame.resize(frame.len() + padding, 0xee);
            let expected = sent(&kernel, &entry, DATA).bytes();
            assert_eq!(kernel.run(&frame), (Verdict::Transmit, expected), "{padding} bytes, {entry:?}");
        }
        kernel.remove(&entry);
    }
}

#[test]
fn exactly_the_headroom_that_is_needed_suffices() {
    let Some(mut kernel) = Kernel::load() else { return };
    if !kernel.can_limit_headroom() {
        return;
    }
    for entry in all() {
        kernel.insert(&entry);
        let frame = received(&entry, DATA).bytes();
        let needed = sent(&kernel, &entry, DATA).bytes().len().saturating_sub(frame.len());
        let (verdict, _) = kernel.run_with_metadata(HEADROOM - needed, &frame);
        assert_eq!(verdict, Verdict::Transmit, "{entry:?}");
        kernel.remove(&entry);
    }
}

#[test]
fn the_longest_packet_of_the_interface_is_relayed() {
    let Some(mut kernel) = Kernel::load() else { return };
    for mut entry in all() {
        let length = sent(&kernel, &entry, DATA).bytes().len() - 14;
        entry.sent.longest_packet = u16::try_from(length).unwrap();
        kernel.insert(&entry);
        assert_eq!(kernel.run(&received(&entry, DATA).bytes()).0, Verdict::Transmit, "{entry:?}");
        kernel.remove(&entry);
    }
}

// RFC 8445 §7: peers check their connectivity with Binding.
#[test]
fn binding_and_other_data_are_relayed() {
    let Some(mut kernel) = Kernel::load() else { return };
    let cookie = [0x21, 0x12, 0xa4, 0x42];
    let binding = [&[0, 1, 0, 0], &cookie[..], &[7; 12]].concat();
    let rtp = [&[0x80, 0x60, 0, 1], &[9; 40][..]].concat();
    let no_cookie = [0, 3, 0, 0, 0x21, 0x12, 0xa4, 0x43, 0, 0];
    let chromium = [&[2, 0, 0, 0], &cookie[..]].concat();
    let like_channel = [0x40, 0x01, 0, 9, 1, 2, 3];
    for entry in all() {
        kernel.insert(&entry);
        for data in [&binding[..], &rtp, &no_cookie, &chromium, &like_channel, &[0, 3], &[]] {
            let (verdict, _) = kernel.run(&received(&entry, data).padded());
            assert_eq!(verdict, Verdict::Transmit, "{data:02x?}, {entry:?}");
        }
        kernel.remove(&entry);
    }
}

#[test]
fn padding_is_not_part_of_a_turn_message() {
    let Some(mut kernel) = Kernel::load() else { return };
    let message = [0, 3, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    for entry in all() {
        kernel.insert(&entry);
        for length in 0..8 {
            let mut frame = received(&entry, &message[..length]).bytes();
            frame.extend(&message[length..]);
            frame.resize(frame.len().max(SHORTEST_FRAME), 0);
            assert_eq!(kernel.run(&frame).0, Verdict::Transmit, "{length} bytes, {entry:?}");
        }
        kernel.remove(&entry);
    }
}

#[test]
fn packets_bytes_and_the_time_are_counted_in_the_slot_of_the_entry() {
    let Some(mut kernel) = Kernel::load() else { return };
    for (slot, mut entry) in (0..).zip(all()) {
        entry.slot = slot;
        kernel.insert(&entry);
        let before = now();
        for length in [0, 1, 100] {
            kernel.run(&received(&entry, &vec![5; length]).padded());
        }
        let counter = kernel.counter(slot);
        assert_eq!((counter.packets, counter.bytes), (3, 101), "{entry:?}");
        let last = Duration::from_nanos(counter.last);
        assert!(before <= last + TICK && last <= now(), "{last:?}");
        assert_eq!(kernel.outcome(Outcome::Relayed), 3 * u64::from(slot + 1));
        kernel.remove(&entry);
    }
}

#[test]
fn an_entry_is_used_until_it_expires() {
    let Some(mut kernel) = Kernel::load() else { return };
    for mut entry in all() {
        let expires = now() + Duration::from_millis(20);
        entry.expires = u64::try_from(expires.as_nanos()).unwrap();
        kernel.insert(&entry);
        let mut relayed = 0;
        loop {
            let before = now();
            let (verdict, _) = kernel.run(&received(&entry, DATA).bytes());
            if verdict == Verdict::Pass {
                assert!(now() >= expires);
                break;
            }
            assert!(before < expires + TICK);
            relayed += 1;
        }
        assert!(relayed > 0);
        kernel.remove(&entry);
    }
}

#[test]
fn the_direction_is_that_of_the_map() {
    let Some(mut kernel) = Kernel::load() else { return };
    // The first bytes of the peer's data are a channel number of another entry.
    let entry = all().find(|entry| entry.direction == Direction::ToClient).unwrap();
    kernel.insert(&entry);
    let data = [0x4a, 0xbc, 0, 3, 1, 2, 3];
    let expected = sent(&kernel, &entry, &data).padded();
    assert_eq!(kernel.run(&received(&entry, &data).padded()), (Verdict::Transmit, expected));
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}
