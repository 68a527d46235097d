//! More notifications than the socket holds.

use crate::hosts::{FAR, batch, link_address, pair, through, with_neighbours};
use crate::network::ip;
use turnserver::offload::next_hop::NextHop;

#[test]
fn lost_notifications_cause_everything_to_be_read_again() {
    with_neighbours([1], |_, server| {
        ip("route add default via 10.0.1.2");
        let pair = pair("10.0.1.1", FAR);
        assert_eq!(server.ask(pair), Ok(through(1)));
        let neighbour = |link_address: &str, number: u32| {
            format!("neigh replace 10.0.1.{number} lladdr {link_address} dev n1 nud permanent")
        };
        let noise = |round: u32| (10..210).map(move |number| neighbour(&format!("02:00:00:00:05:{round:02x}"), number));
        // The first notification is read, all others that concern the neighbour are lost.
        let mut commands = vec![neighbour("02:00:00:00:01:08", 2)];
        commands.extend((0..40).flat_map(noise));
        commands.push(neighbour("02:00:00:00:01:09", 2));
        commands.extend((40..50).flat_map(noise));
        batch(&commands);
        server.wait_for(pair, &Ok(NextHop { link_destination: link_address(1, 9), ..through(1) }));
        // The notifications that follow are applied.
        ip("link set n1 mtu 1400");
        server.wait(pair, |resolution| resolution.as_ref().is_ok_and(|next_hop| next_hop.longest_packet == 1400));
    });
}
