//! The sum of docs/threat-model.md, "Memory".

use crate::memory_table::documented;

/// Returns a number of bytes in MB.
fn mb(bytes: usize) -> usize {
    (bytes + 500_000) / 1_000_000
}

/// The same, with one decimal.
fn exact_mb(bytes: usize) -> String {
    let tenths = (bytes + 50_000) / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[test]
fn the_sum_follows_from_the_table() {
    const WORKERS: usize = 2;
    const ALLOCATIONS: usize = 16_384;
    const CONNECTIONS: usize = 10_000;
    const VISITORS: usize = 10_000;
    let worker = [
        documented("The buffers of a worker for datagrams and reads"),
        2_048 * documented("A user in the cache of keys"),
        documented("Responses and data that wait for clients on connections"),
        documented("Datagrams of a worker that wait for peers"),
        documented("Datagrams of a worker that wait for clients"),
    ];
    let tables = [
        documented("The table of sources"),
        documented("The tables of users and of connections"),
        documented("The ports and reservations of a relay address"),
    ];
    let allocations = ALLOCATIONS * documented("An allocation with all its permissions and channels");
    let fewer_channels = ALLOCATIONS * documented("An allocation with 32 permissions and 32 channels");
    let connection = documented("A TLS connection with an allocation");
    let without_allocation = documented("A TLS connection without an allocation");
    let visitor = documented("A connection to a front whose data waits in buffers");
    let visitor_without_data = documented("A connection to a front");
    let proxied = [
        28_672 * documented("A client behind a proxy, over UDP"),
        1_024 * documented("A client behind a proxy, over UDP, whose allocation waits for a header"),
    ];
    let handshakes = WORKERS * 512 * (documented("An unfinished TLS handshake") - without_allocation);
    let others = [
        4_096 * documented("A log line that waits"),
        128 * documented("An HTTP connection"),
        100 * documented("A result of the test page"),
        2 * documented("What the control socket adds"),
    ];
    let of_workers = WORKERS * worker.iter().sum::<usize>();
    let of_tables: usize = tables.iter().sum();
    let of_others: usize = others.iter().sum();
    let of_proxied = WORKERS * proxied.iter().sum::<usize>();
    let of_visitors = VISITORS * visitor;
    let all = of_workers + of_tables + allocations + CONNECTIONS * connection + of_visitors + of_proxied + of_others;
    // Without a credential, there are no allocations, no other users, and neither test page nor control socket.
    let of_others_unauthenticated = others[0] + others[1];
    let unauthenticated = of_workers
        + of_tables
        + CONNECTIONS * without_allocation
        + handshakes
        + of_visitors
        + WORKERS * proxied[0]
        + of_others_unauthenticated;
    let parts = |parts: &[usize]| parts.iter().copied().map(exact_mb).collect::<Vec<_>>().join(" + ");
    let document = include_str!("../../docs/threat-model.md");
    for text in [
        format!("| {} MB: 2 × ({}) |", mb(of_workers), parts(&worker)),
        format!("| {} MB: {} |", mb(of_tables), parts(&tables)),
        format!("| {} MB; with the XDP program,", mb(allocations)),
        format!(
            "| {} MB; without an allocation {} MB, and {} MB more for 2 × 512 of them in a handshake |",
            mb(CONNECTIONS * connection),
            mb(CONNECTIONS * without_allocation),
            mb(handshakes)
        ),
        format!(
            "| {} MB while their data waits in buffers, {} MB while none waits |",
            mb(of_visitors),
            mb(VISITORS * visitor_without_data)
        ),
        format!("| {} MB: 2 × ({}) |", mb(of_proxied), parts(&proxied)),
        format!("| {} MB: {}. For a moment,", mb(of_others), parts(&others)),
        format!(
            "| {} GB, of which clients without a credential can cause {} GB |",
            exact_mb(all / 1_000),
            exact_mb(unauthenticated / 1_000)
        ),
        format!("of 32 bring the {} MB\nto {} MB,", mb(allocations), mb(fewer_channels)),
        format!(
            "`limits.connections` of 2000 brings the {} MB to {} MB.",
            mb(CONNECTIONS * connection),
            mb(2_000 * connection)
        ),
        format!("`connections` of 2000 at the front brings the {} MB to {} MB.", mb(of_visitors), mb(2_000 * visitor)),
    ] {
        assert!(document.contains(&text), "docs/threat-model.md does not have: {text}");
    }
}
