//! The tables of the relay addresses, across changes of the addresses of this machine.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::addresses::Choice;
use crate::turn::{RelayAddress, RelayAddresses};

/// The relay addresses of the snapshots, in their order.
#[derive(Debug)]
pub(super) struct RelayTables {
    entries: Vec<Entry>,
    ports: RangeInclusive<u16>,
}

#[derive(Debug)]
struct Entry {
    table: Arc<RelayAddress>,
    /// Whether this machine has the address.
    present: bool,
}

/// What a new choice means for the addresses of the preceding one: pairs of the bound and the advertised address.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// The machine no longer has them. Their allocations end.
    pub(super) gone: Vec<(IpAddr, IpAddr)>,
    /// They get no new allocations, because there are better ones. They remain usable, and their allocations continue.
    pub(super) retired: Vec<(IpAddr, IpAddr)>,
    /// They get no new allocations, because they cannot be used at present. Their allocations remain.
    pub(super) unusable: Vec<(IpAddr, IpAddr)>,
}

impl RelayTables {
    pub(super) fn new(ports: RangeInclusive<u16>) -> Self {
        Self { entries: Vec::new(), ports }
    }

    /// Returns the addresses of this machine to which the relay sockets are bound.
    pub(super) fn bound(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.entries.iter().map(|entry| entry.table.bind())
    }

    /// Returns the relay addresses for a snapshot.
    pub(super) fn addresses(&self) -> RelayAddresses {
        self.entries.iter().map(|entry| Arc::clone(&entry.table)).collect()
    }

    /// Sets the ports for new allocations. The tables keep the ports in use, reserved or resting.
    pub(super) fn set_ports(&mut self, ports: RangeInclusive<u16>) {
        if ports != self.ports {
            self.addresses().set_port_range(&ports);
            self.ports = ports;
        }
    }

    /// Adopts a new choice. `is_present` returns whether this machine has an address.
    ///
    /// An address that comes back after it had gone has a new table, so that its old allocations end. An address for
    /// which the server waits has a table too, so that requests for its family are rejected with 508 and not with 440.
    pub(super) fn update(&mut self, choice: &Choice, is_present: &dyn Fn(IpAddr) -> bool) -> Left {
        let old = std::mem::take(&mut self.entries);
        let table = |bind: IpAddr, advertised: IpAddr, present: bool| {
            let same = |entry: &&Entry| {
                entry.present == present && (entry.table.bind(), entry.table.advertised()) == (bind, advertised)
            };
            if let Some(known) = old.iter().find(same) {
                return Arc::clone(&known.table);
            }
            // With another mapping, ports of the address may still be in use.
            let bound = old.iter().find(|entry| entry.table.bind() == bind);
            Arc::new(match bound {
                Some(entry) => entry.table.sharing_ports(advertised),
                None => RelayAddress::new(bind, advertised, &self.ports),
            })
        };
        for relay in &choice.addresses {
            let table = table(relay.bind, relay.advertised, true);
            table.set_for_all(relay.for_all);
            table.set_usable(true);
            self.entries.push(Entry { table, present: true });
        }
        let mut left = Left::default();
        for (bind, advertised) in &choice.missing {
            // The address of an interface that is down stays an address of this machine.
            let present = is_present(*bind) && old.iter().any(|entry| entry.present && entry.table.bind() == *bind);
            let table = table(*bind, *advertised, present);
            if present && table.is_usable() {
                left.unusable.push((*bind, *advertised));
            }
            table.set_usable(false);
            self.entries.push(Entry { table, present });
        }
        for entry in old.into_iter().filter(|entry| entry.present) {
            if self.entries.iter().any(|kept| Arc::ptr_eq(&kept.table, &entry.table)) {
                continue;
            }
            let pair = (entry.table.bind(), entry.table.advertised());
            if !is_present(pair.0) {
                left.gone.push(pair);
            } else if entry.table.is_usable() {
                entry.table.set_usable(false);
                // A loopback address is left for the first other address, of either family.
                let has_better =
                    choice.for_all().any(|relay| relay.bind.is_ipv4() == pair.0.is_ipv4() || pair.0.is_loopback());
                if has_better && !choice.unusable.contains(&pair.0) { &mut left.retired } else { &mut left.unusable }
                    .push(pair);
                self.entries.push(entry);
            } else if entry.table.is_in_use() {
                self.entries.push(entry);
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::super::addresses;
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn choice(present: &[&str], missing: &[&str]) -> Choice {
        let relay = |text: &&str| addresses::RelayAddress {
            bind: ip(text),
            advertised: ip(text),
            reason: String::new(),
            for_all: true,
        };
        Choice {
            addresses: present.iter().map(relay).collect(),
            missing: missing.iter().map(|text| (ip(text), ip(text))).collect(),
            unusable: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn usable(tables: &RelayTables) -> Vec<(String, bool)> {
        let state = |table: &Arc<RelayAddress>| (table.bind().to_string(), table.is_usable());
        tables.addresses().iter().map(state).collect()
    }

    fn of(tables: &RelayTables, text: &str) -> Arc<RelayAddress> {
        Arc::clone(tables.addresses().iter().find(|table| table.bind() == ip(text)).unwrap())
    }

    #[test]
    fn an_address_keeps_its_table_until_it_goes() {
        let mut tables = RelayTables::new(50_000..=50_099);
        tables.update(&choice(&["5.9.1.1"], &["5.9.1.2"]), &|_| true);
        assert_eq!(usable(&tables), [("5.9.1.1".to_owned(), true), ("5.9.1.2".to_owned(), false)]);
        let (first, awaited) = (of(&tables, "5.9.1.1"), of(&tables, "5.9.1.2"));
        tables.update(&choice(&["5.9.1.1"], &["5.9.1.2"]), &|_| true);
        assert!(Arc::ptr_eq(&first, &of(&tables, "5.9.1.1")) && Arc::ptr_eq(&awaited, &of(&tables, "5.9.1.2")));
        let left = tables.update(&choice(&["5.9.1.2"], &["5.9.1.1"]), &|own| own == ip("5.9.1.2"));
        assert_eq!(left, Left { gone: vec![(ip("5.9.1.1"), ip("5.9.1.1"))], ..Left::default() });
        assert_eq!(usable(&tables), [("5.9.1.2".to_owned(), true), ("5.9.1.1".to_owned(), false)]);
        tables.update(&choice(&["5.9.1.2", "5.9.1.1"], &[]), &|_| true);
        assert!(!Arc::ptr_eq(&first, &of(&tables, "5.9.1.1")));
    }

    #[test]
    fn an_address_that_is_still_there_is_retired_and_dropped_when_it_has_no_allocations() {
        let mut tables = RelayTables::new(50_000..=50_099);
        tables.update(&choice(&["2a01::1"], &[]), &|_| true);
        let left = tables.update(&choice(&["2a01::2"], &[]), &|_| true);
        assert_eq!(left, Left { retired: vec![(ip("2a01::1"), ip("2a01::1"))], ..Left::default() });
        assert_eq!(usable(&tables), [("2a01::2".to_owned(), true), ("2a01::1".to_owned(), false)]);
        assert_eq!(tables.update(&choice(&["2a01::2"], &[]), &|_| true), Left::default());
        assert_eq!(usable(&tables), [("2a01::2".to_owned(), true)]);
    }

    // The address of an interface that is down stays an address of the machine.
    #[test]
    fn an_address_that_is_not_usable_at_present_keeps_its_table() {
        for missing in [&[][..], &["5.9.1.1"]] {
            let mut tables = RelayTables::new(50_000..=50_099);
            tables.update(&choice(&["5.9.1.1"], &[]), &|_| true);
            let table = of(&tables, "5.9.1.1");
            let left = tables.update(&choice(&[], missing), &|_| true);
            assert_eq!(left, Left { unusable: vec![(ip("5.9.1.1"), ip("5.9.1.1"))], ..Left::default() });
            assert_eq!(usable(&tables), [("5.9.1.1".to_owned(), false)]);
            assert!(Arc::ptr_eq(&table, &of(&tables, "5.9.1.1")));
            if !missing.is_empty() {
                assert_eq!(tables.update(&choice(&[], missing), &|_| true), Left::default());
            }
            tables.update(&choice(&["5.9.1.1"], &[]), &|_| true);
            assert!(Arc::ptr_eq(&table, &of(&tables, "5.9.1.1")) && table.is_usable());
        }
    }

    #[test]
    fn an_address_that_is_not_usable_at_present_is_not_retired_if_there_is_another() {
        let mut tables = RelayTables::new(50_000..=50_099);
        tables.update(&choice(&["5.9.1.1", "5.9.1.2"], &[]), &|_| true);
        let down = Choice { unusable: vec![ip("5.9.1.1")], ..choice(&["5.9.1.2"], &[]) };
        let left = tables.update(&down, &|_| true);
        assert_eq!(left, Left { unusable: vec![(ip("5.9.1.1"), ip("5.9.1.1"))], ..Left::default() });
    }

    #[test]
    fn both_loopback_addresses_are_retired_for_an_address_of_either_family() {
        for better in ["5.9.1.1", "2a01::1"] {
            let mut tables = RelayTables::new(50_000..=50_099);
            tables.update(&choice(&["127.0.0.1", "::1"], &[]), &|_| true);
            let left = tables.update(&choice(&[better], &[]), &|_| true);
            let retired = ["127.0.0.1", "::1"].map(|loopback| (ip(loopback), ip(loopback)));
            assert_eq!(left, Left { retired: retired.into(), ..Left::default() });
        }
    }

    #[test]
    fn a_retired_address_is_usable_again_with_its_table() {
        let mut tables = RelayTables::new(50_000..=50_099);
        tables.update(&choice(&["5.9.1.1"], &[]), &|_| true);
        let first = of(&tables, "5.9.1.1");
        tables.update(&choice(&["5.9.1.2"], &[]), &|_| true);
        tables.update(&choice(&["5.9.1.1"], &[]), &|_| true);
        assert!(Arc::ptr_eq(&first, &of(&tables, "5.9.1.1")) && first.is_usable());
    }
}
