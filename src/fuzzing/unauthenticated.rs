//! The core under clients without credentials, and under peers: nothing creates state.

use super::input::Input;
use super::requests::{self, By, CLIENTS, Signed, blueprint, peer};
use super::world::World;
use crate::ip_fields::IpFields;
use crate::turn::{Frame, IcmpError, SocketId};

/// Passes datagrams, pieces of streams and packets of peers to a worker. Nothing is ever signed with a key of the server.
pub fn core_unauthenticated(data: &[u8]) {
    let mut input = Input::new(data);
    let mut blueprint = blueprint();
    // With few responses, the limits apply.
    let limits = input.byte();
    blueprint.limits.unverified_responses = (limits & 7).into();
    blueprint.limits.failed_authentications = (limits >> 3 & 7).into();
    let mut world = World::new(blueprint, 1);
    let mut streams: [Vec<u8>; CLIENTS] = Default::default();
    while !input.is_empty() {
        let operation = input.byte();
        let client = usize::from(operation >> 3) % CLIENTS;
        let mut tuple = requests::tuple(client);
        match operation % 8 {
            0 | 1 => {
                let length = usize::from(input.u16());
                let packet = input.take(length);
                world.client_packet(0, &tuple, packet, None, None);
            }
            // A client with a nonce, and without a valid password.
            2 => {
                let Signed { client, bytes, signature } = requests::read(&world, By::Guesser, &mut input);
                world.client_packet(0, &requests::tuple(client), &bytes, None, Some(&signature));
            }
            3 => {
                let (length, segment) = (usize::from(input.u16()), input.byte());
                let buffer = input.take(length);
                world.client_packet(0, &tuple, buffer, Some(segment.into()), None);
            }
            // A connection: its messages are found in what has come so far.
            4 => {
                let stream = &mut streams[client];
                stream.extend(input.bytes());
                loop {
                    match world.workers[0].server.next_frame(stream) {
                        Frame::Complete { message, length } => {
                            let packet: Vec<u8> = stream.drain(..length).take(message).collect();
                            world.client_packet(0, &tuple, &packet, None, None);
                        }
                        Frame::Partial => break,
                        Frame::Invalid => {
                            stream.clear();
                            world.connection_closed(0, &tuple);
                            break;
                        }
                    }
                }
            }
            5 => {
                let (slot, source) = (input.byte(), peer(&world, input.byte()));
                let socket = SocketId::for_tests(slot.into());
                let payload = input.bytes();
                world.peer_packet(0, socket, source, payload, None);
                world.icmp(0, socket, source, IcmpError { kind: 3, code: slot, mtu: 0 });
            }
            6 => {
                world.pass(u64::from(input.u16()));
                world.advance(0, usize::MAX);
            }
            _ => {
                // A forged source, which may be impossible.
                let (address, port, hop_limit) = (input.u32(), input.u16(), input.byte());
                tuple.client = (std::net::Ipv4Addr::from(address), port).into();
                world.fields = IpFields { tos: 0, hop_limit: Some(hop_limit) };
                let length = usize::from(input.u16());
                let packet = input.take(length);
                world.client_packet(0, &tuple, packet, None, None);
            }
        }
        assert!(world.is_empty(), "a client without credentials creates no state");
        assert!(!world.workers[0].server.has_actions());
    }
}
