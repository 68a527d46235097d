//! Rooms in headless browsers. All media and data go through a real relay. Over loopback addresses, pages use nothing but
//! the relay; between network namespaces, the browsers find that there is no other way. Each test writes rows of a table,
//! target/tmp/rooms-table.md: system, transport, browsers, network, what was seen, and the time from the navigation to the
//! first decoded frame.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "browser/browsers.rs"]
mod browsers;
#[cfg(test)]
#[path = "browser/calls.rs"]
mod calls;
#[cfg(test)]
#[path = "browser/changes.rs"]
mod changes;
#[cfg(test)]
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../../../tests/fleet/cluster.rs"]
mod cluster;
#[cfg(test)]
#[path = "browser/data.rs"]
mod data;
#[cfg(test)]
#[path = "browser/devices.rs"]
mod devices;
#[cfg(test)]
#[path = "browser/driver.rs"]
mod driver;
#[cfg(test)]
#[path = "browser/file.rs"]
mod file;
#[cfg(test)]
#[path = "browser/firefox.rs"]
mod firefox;
#[cfg(test)]
#[path = "browser/fleet.rs"]
mod fleet;
#[cfg(test)]
#[path = "browser/groups.rs"]
mod groups;
#[cfg(test)]
#[path = "browser/homes.rs"]
mod homes;
#[cfg(test)]
#[path = "browser/line.rs"]
mod line;
#[cfg(test)]
#[path = "browser/moves.rs"]
mod moves;
#[cfg(test)]
#[path = "browser/networks.rs"]
mod networks;
#[cfg(test)]
#[path = "../../../tests/fleet/node.rs"]
mod node;
#[cfg(test)]
#[path = "browser/participant.rs"]
mod participant;
#[cfg(test)]
#[path = "browser/peers.rs"]
mod peers;
#[cfg(test)]
#[path = "browser/pictures.rs"]
mod pictures;
#[cfg(test)]
#[path = "browser/place.rs"]
mod place;
#[cfg(test)]
#[path = "support/program.rs"]
mod program;
#[cfg(test)]
#[path = "browser/recordings.rs"]
mod recordings;
#[cfg(test)]
#[path = "browser/relay.rs"]
mod relay;
#[cfg(test)]
#[path = "browser/relays.rs"]
mod relays;
#[cfg(test)]
#[path = "browser/support.rs"]
mod support;
#[cfg(test)]
#[path = "browser/table.rs"]
mod table;
#[cfg(test)]
#[path = "browser/transports.rs"]
mod transports;
#[cfg(test)]
#[path = "browser/troubles.rs"]
mod troubles;
#[cfg(test)]
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../../../tests/browser/webdriver.rs"]
mod webdriver;
