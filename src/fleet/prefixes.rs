//! The operator's table of client prefixes and their regions.
//!
//! The prefixes become disjoint ranges, so a lookup is one binary search. A range takes 6 bytes for IPv4 and 18 bytes for
//! IPv6, and a prefix makes at most two of them: 100 000 IPv4 prefixes take at most 1.2 MB. A lookup among them compares
//! 18 addresses, which takes well below a microsecond.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Heartbeat;

/// The region of each client prefix. The longest matching prefix counts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Prefixes {
    regions: Vec<Box<str>>,
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

/// Disjoint ranges: each begins at its start and ends before the next one.
#[derive(Clone, PartialEq, Eq)]
struct Ranges<A> {
    starts: Box<[A]>,
    /// Indexes of regions, or [`NOWHERE`].
    regions: Box<[u16]>,
}

/// Marks a range without a region.
const NOWHERE: u16 = u16::MAX;

impl<A> Default for Ranges<A> {
    fn default() -> Self {
        Self { starts: Box::default(), regions: Box::default() }
    }
}

/// A line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadLine {
    /// The number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// A prefix as numbers: the first and the last address. IPv4 addresses are numbers of 32 bits.
#[derive(Clone, Copy)]
struct Prefix {
    first: u128,
    last: u128,
    region: u16,
    line: usize,
}

impl Prefixes {
    /// The greatest number of prefixes.
    pub const CAPACITY: usize = 1_000_000;
    /// The greatest number of regions.
    pub const MOST_REGIONS: usize = 10_000;
    /// No more lines are reported as errors.
    const MOST_ERRORS: usize = 20;

    /// Parses lines `PREFIX REGION`. A prefix without a length is one address. `#` begins a comment.
    ///
    /// # Errors
    /// The first 20 lines that cannot be used.
    pub fn parse(text: &str) -> Result<Self, Vec<BadLine>> {
        let mut regions = Regions::default();
        let (mut v4, mut v6, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (line, content) in (1..).zip(text.lines()) {
            if v4.len() + v6.len() >= Self::CAPACITY {
                errors.push(BadLine { line, problem: format!("more than {} prefixes", Self::CAPACITY) });
                break;
            }
            match parse_line(content, line, &mut regions) {
                Ok(None) => {}
                Ok(Some((true, prefix))) => v4.push(prefix),
                Ok(Some((false, prefix))) => v6.push(prefix),
                Err(problem) => errors.push(BadLine { line, problem }),
            }
            if errors.len() >= Self::MOST_ERRORS {
                return Err(errors);
            }
        }
        let (v4, v6) = (ranges(v4, u32::MAX.into(), &mut errors), ranges(v6, u128::MAX, &mut errors));
        if !errors.is_empty() {
            errors.sort_by_key(|error| error.line);
            errors.truncate(Self::MOST_ERRORS);
            return Err(errors);
        }
        // Addresses of IPv4 were made from 32 bits.
        let v4 = Ranges {
            starts: v4.starts.iter().map(|start| u32::try_from(*start).unwrap_or(u32::MAX)).collect(),
            regions: v4.regions,
        };
        Ok(Self { regions: regions.names, v4, v6 })
    }

    /// Returns the region of the longest prefix that contains `client`. An IPv4-mapped address is an IPv4 address.
    #[must_use]
    pub fn region(&self, client: IpAddr) -> Option<&str> {
        let region = match client.to_canonical() {
            IpAddr::V4(v4) => self.v4.find(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.find(v6.to_bits()),
        }?;
        self.regions.get(usize::from(region)).map(AsRef::as_ref)
    }

    /// Returns the memory of the ranges in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let regions = (self.v4.regions.len() + self.v6.regions.len()) * size_of::<u16>();
        size_of_val(&*self.v4.starts) + size_of_val(&*self.v6.starts) + regions
    }
}

impl fmt::Debug for Prefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefixes").field("memory", &self.memory()).finish_non_exhaustive()
    }
}

impl<A: Copy + Ord> Ranges<A> {
    fn find(&self, address: A) -> Option<u16> {
        let after = self.starts.partition_point(|start| *start <= address);
        self.regions.get(after.checked_sub(1)?).copied()
    }
}

/// The names of regions, each once.
#[derive(Default)]
struct Regions {
    names: Vec<Box<str>>,
    indexes: HashMap<Box<str>, u16>,
}

impl Regions {
    fn index(&mut self, name: &str) -> Result<u16, String> {
        if let Some(index) = self.indexes.get(name) {
            return Ok(*index);
        }
        if !Heartbeat::is_region_name(name) {
            let allowed = format!("has 1 to {} letters, digits, - and _", Heartbeat::LONGEST_REGION);
            return Err(format!("{name:?} is not a region, which {allowed}"));
        }
        let index = u16::try_from(self.names.len()).ok().filter(|at| usize::from(*at) < Prefixes::MOST_REGIONS);
        let index = index.ok_or_else(|| format!("more than {} regions", Prefixes::MOST_REGIONS))?;
        self.names.push(name.into());
        self.indexes.insert(name.into(), index);
        Ok(index)
    }
}

/// Parses a line; `None` if it is empty. The flag is whether the prefix is of IPv4.
fn parse_line(content: &str, line: usize, regions: &mut Regions) -> Result<Option<(bool, Prefix)>, String> {
    let content = content.split_once('#').map_or(content, |(before, _)| before);
    let mut words = content.split_ascii_whitespace();
    let Some(prefix) = words.next() else { return Ok(None) };
    let (Some(region), None) = (words.next(), words.next()) else {
        return Err("not `PREFIX REGION`".to_owned());
    };
    let net = parse_prefix(prefix)?;
    let region = regions.index(region)?;
    let (first, last) = match net {
        IpNet::V4(v4) => (u128::from(v4.network().to_bits()), u128::from(v4.broadcast().to_bits())),
        IpNet::V6(v6) => (v6.network().to_bits(), v6.broadcast().to_bits()),
    };
    Ok(Some((matches!(net, IpNet::V4(_)), Prefix { first, last, region, line })))
}

/// Parses a prefix. One of IPv4-mapped addresses becomes one of IPv4.
fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => text.parse::<IpAddr>().map(IpNet::from).map_err(|_| format!("{text:?} is not a prefix"))?,
    };
    if net.addr() != net.network() {
        return Err(format!("{text:?} has bits after its length; the prefix is {}", net.trunc()));
    }
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V4(v4), Some(length)) if net.addr().is_ipv6() => {
            Ok(IpNet::new(v4.into(), length).map_err(|error| error.to_string())?)
        }
        _ => Ok(net),
    }
}

/// Makes disjoint ranges of prefixes. Prefixes are nested or disjoint.
fn ranges(mut prefixes: Vec<Prefix>, end: u128, errors: &mut Vec<BadLine>) -> Ranges<u128> {
    // A longer prefix comes after those that contain it.
    prefixes.sort_by_key(|prefix| (prefix.first, std::cmp::Reverse(prefix.last), prefix.line));
    let mut list: Vec<(u128, u16)> = Vec::new();
    let mut begin = |start: u128, region: u16| {
        if list.last().is_some_and(|(last, _)| *last == start) {
            list.pop();
        }
        if list.last().map_or(NOWHERE, |(_, before)| *before) != region {
            list.push((start, region));
        }
    };
    let mut open: Vec<Prefix> = Vec::new();
    for prefix in prefixes {
        close(&mut open, prefix.first, end, &mut begin);
        match open.last() {
            Some(same) if (same.first, same.last) == (prefix.first, prefix.last) => {
                if same.region != prefix.region {
                    let problem = format!("the prefix has another region in line {}", same.line);
                    errors.push(BadLine { line: prefix.line, problem });
                }
            }
            _ => {
                begin(prefix.first, prefix.region);
                open.push(prefix);
            }
        }
    }
    close(&mut open, end, end, &mut begin);
    while let Some(prefix) = open.pop() {
        if prefix.last < end {
            begin(prefix.last + 1, open.last().map_or(NOWHERE, |outer| outer.region));
        }
    }
    let (starts, regions): (Vec<u128>, Vec<u16>) = list.into_iter().unzip();
    Ranges { starts: starts.into(), regions: regions.into() }
}

/// Ends the prefixes that end before `first`.
fn close(open: &mut Vec<Prefix>, first: u128, end: u128, begin: &mut impl FnMut(u128, u16)) {
    while let Some(prefix) = open.pop_if(|prefix| prefix.last < first && prefix.last < end) {
        begin(prefix.last + 1, open.last().map_or(NOWHERE, |outer| outer.region));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region<'p>(prefixes: &'p Prefixes, client: &str) -> Option<&'p str> {
        prefixes.region(client.parse().unwrap())
    }

    fn problems(text: &str) -> Vec<String> {
        Prefixes::parse(text).unwrap_err().iter().map(BadLine::to_string).collect()
    }

    #[test]
    fn the_longest_prefix_counts() {
        let text = "10.0.0.0/8 a # all\n\n# comment\n10.1.0.0/16\tb\n10.1.2.3 c\n2001:db8::/32 d\n2001:db8:1::/48 e\n";
        let prefixes = Prefixes::parse(text).unwrap();
        for (client, expected) in [
            ("10.0.0.0", Some("a")),
            ("10.1.0.0", Some("b")),
            ("10.1.2.3", Some("c")),
            ("10.1.2.4", Some("b")),
            ("10.1.255.255", Some("b")),
            ("10.2.0.0", Some("a")),
            ("10.255.255.255", Some("a")),
            ("9.255.255.255", None),
            ("11.0.0.0", None),
            ("::ffff:10.1.2.3", Some("c")),
            ("2001:db8::1", Some("d")),
            ("2001:db8:1:2::1", Some("e")),
            ("2001:db9::1", None),
        ] {
            assert_eq!(region(&prefixes, client), expected, "{client}");
        }
    }

    #[test]
    fn the_whole_address_space_is_a_prefix() {
        let prefixes = Prefixes::parse("0.0.0.0/0 a\n255.255.255.255/32 b\n::/0 c\n").unwrap();
        assert_eq!(region(&prefixes, "0.0.0.0"), Some("a"));
        assert_eq!(region(&prefixes, "255.255.255.254"), Some("a"));
        assert_eq!(region(&prefixes, "255.255.255.255"), Some("b"));
        assert_eq!(region(&prefixes, "ffff::"), Some("c"));
    }

    #[test]
    fn a_prefix_of_mapped_addresses_is_one_of_ipv4() {
        let prefixes = Prefixes::parse("::ffff:192.0.2.0/120 a").unwrap();
        assert_eq!(region(&prefixes, "192.0.2.7"), Some("a"));
        assert_eq!(region(&prefixes, "192.0.3.7"), None);
    }

    #[test]
    fn errors_have_the_number_of_their_line() {
        assert_eq!(
            problems("10.0.0.0/8 a\n10.0.0.0/33 a\nx\n10.0.0.1/8 a\n10.0.0.0/9 a b\n10.0.0.0/9 ä\n"),
            [
                "line 2: \"10.0.0.0/33\" is not a prefix",
                "line 3: not `PREFIX REGION`",
                "line 4: \"10.0.0.1/8\" has bits after its length; the prefix is 10.0.0.0/8",
                "line 5: not `PREFIX REGION`",
                "line 6: \"ä\" is not a region, which has 1 to 32 letters, digits, - and _",
            ]
        );
        assert_eq!(problems("10.0.0.0/8 a\n10.0.0.0/8 b"), ["line 2: the prefix has another region in line 1"]);
        assert!(Prefixes::parse("10.0.0.0/8 a\n10.0.0.0/8 a").is_ok());
        assert_eq!(problems(&"x\n".repeat(100)).len(), 20);
    }

    #[test]
    fn a_hundred_thousand_prefixes_take_little_memory() {
        let line = |number: u32| format!("{}/24 r{}\n", std::net::Ipv4Addr::from_bits(number << 9), number % 7);
        let prefixes = Prefixes::parse(&(0..100_000).map(line).collect::<String>()).unwrap();
        assert!(prefixes.memory() <= 1_200_000, "{}", prefixes.memory());
        assert_eq!(prefixes.region(std::net::Ipv4Addr::from_bits(99_999 << 9 | 255).into()), Some("r4"));
        assert_eq!(prefixes.region(std::net::Ipv4Addr::from_bits(99_999 << 9 | 256).into()), None);
    }

    proptest! {
        #[test]
        fn a_lookup_equals_a_search_of_all_lines(
            lines in prop::collection::vec((any::<u8>(), 0..=8u8, 0..5u8), 0..40),
            v6: bool,
        ) {
            // Prefixes in one byte of the address space, so that they meet.
            let (mut seen, mut text) = (HashMap::new(), String::new());
            let at = |byte: u8| -> IpAddr {
                if v6 { format!("{byte:02x}00::").parse().unwrap() } else { IpAddr::from([byte, 0, 0, 0]) }
            };
            for (byte, length, region) in lines {
                let net = IpNet::new(at(byte), length).unwrap().trunc();
                if seen.insert(net, region).is_none_or(|before| before == region) {
                    text += &format!("{net} r{region}\n");
                } else {
                    seen.insert(net, region);
                    text = text.lines().filter(|line| !line.starts_with(&format!("{net} "))).map(|l| format!("{l}\n")).collect();
                    text += &format!("{net} r{region}\n");
                }
            }
            let prefixes = Prefixes::parse(&text).unwrap();
            for byte in 0..=255 {
                let matching = seen.iter().filter(|(net, _)| net.contains(&at(byte)));
                let expected = matching.max_by_key(|(net, _)| net.prefix_len()).map(|(_, region)| format!("r{region}"));
                prop_assert_eq!(prefixes.region(at(byte)), expected.as_deref(), "{}", text);
            }
        }
    }
}
