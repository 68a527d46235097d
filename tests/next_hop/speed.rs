//! The time for 10 000 pairs. `cargo test --test next_hop -- --ignored --nocapture speed`

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use tokio::runtime::Builder;
use turnserver::offload::next_hop::{Pair, Watcher};

use crate::hosts::{OWNER, batch, with_neighbours};
use crate::network::ip;

const PAIRS: u32 = 10_000;

#[test]
#[ignore = "a measurement"]
fn ten_thousand_pairs_behind_one_gateway() {
    with_neighbours([1], |_, _| {
        ip("neigh add 10.0.1.3 lladdr 02:00:00:00:01:03 dev n1 nud permanent");
        ip("route add default via 10.0.1.2");
        let source: IpAddr = "10.0.1.1".parse().unwrap();
        let first = u32::from(Ipv4Addr::new(203, 0, 113, 0));
        let pairs: Vec<Pair> =
            (0..PAIRS).map(|number| Pair { source, destination: Ipv4Addr::from(first + number).into() }).collect();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let start = now();
            let mut watcher = Watcher::open().unwrap();
            println!("open: {:?}", start.elapsed());
            let before = memory();
            let start = now();
            pairs.iter().for_each(|pair| drop(watcher.ask(OWNER, *pair).unwrap()));
            println!("ask for {PAIRS} pairs: {:?}, {} KiB", start.elapsed(), memory() - before);
            let start = now();
            pairs.iter().for_each(|pair| watcher.release(OWNER, *pair));
            println!("release: {:?}", start.elapsed());
            let start = now();
            pairs.iter().for_each(|pair| drop(watcher.ask_later(OWNER, *pair)));
            println!("ask_later, the calls: {:?}", start.elapsed());
            measure("ask_later, the notices", &mut watcher).await;
            for (name, command) in [
                (
                    "another link address of the gateway",
                    "neigh replace 10.0.1.2 lladdr 02:00:00:00:01:08 dev n1 nud permanent",
                ),
                ("another default route", "route replace default via 10.0.1.3"),
                ("another MTU", "link set n1 mtu 1400"),
            ] {
                ip(command);
                measure(name, &mut watcher).await;
            }
            let noise: Vec<String> = (0..10_000)
                .map(|number| (10 + number % 200, number / 200))
                .map(|(host, round)| format!("neigh replace 10.0.1.{host} lladdr 02:00:00:00:05:{round:02x} dev n1"))
                .collect();
            batch(&noise);
            ip("neigh replace 10.0.1.3 lladdr 02:00:00:00:01:08 dev n1 nud permanent");
            measure("an overrun, with another link address", &mut watcher).await;
        });
    });
}

/// Waits for the notices of all pairs beside another task, and measures between two turns of that task how long the
/// thread was busy: in time, and in CPU time, which leaves other processes out.
async fn measure(name: &str, watcher: &mut Watcher) {
    let start = now();
    let (mut notices, mut turns) = (0, 0);
    let (mut last, mut longest) = ((now(), cpu_time()), (Duration::ZERO, Duration::ZERO));
    while notices < PAIRS {
        tokio::select! {
            biased;
            new = watcher.next() => notices += u32::try_from(new.unwrap().len()).unwrap(),
            () = tokio::task::yield_now() => {}
        }
        longest = (longest.0.max(last.0.elapsed()), longest.1.max(cpu_time() - last.1));
        last = (now(), cpu_time());
        turns += 1;
    }
    println!("{name}: {:?}; of {turns} turns the longest {:?}, CPU {:?}", start.elapsed(), longest.0, longest.1);
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn now() -> Instant {
    Instant::now()
}

/// The memory of this process in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
