use std::io;

use super::*;

/// A connection that accepts `room` bytes and no more.
#[derive(Default)]
struct Slow {
    room: usize,
    taken: Vec<u8>,
}

impl AsyncWrite for Slow {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = bytes.len().min(self.room);
        if count == 0 {
            return Poll::Pending;
        }
        self.room -= count;
        self.taken.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn when_the_server_stops_a_connection_ends_once_its_responses_are_written() {
    let (mut outbound, mut stream) = (outbound(), Slow { room: 3, ..Slow::default() });
    let mut cx = Context::from_waker(Waker::noop());
    outbound.push_response(b"response", false);
    outbound.finish();
    assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
    stream.room = 100;
    assert_eq!(outbound.poll_write(&mut cx, at(0), &mut stream), Poll::Ready(CloseReason::ServerStopped));
    assert_eq!(stream.taken, b"response");
}

#[test]
fn a_connection_without_queued_responses_ends_at_once() {
    let (mut outbound, mut cx) = (outbound(), Context::from_waker(Waker::noop()));
    assert!(outbound.poll_write(&mut cx, at(0), &mut Slow::default()).is_pending());
    outbound.finish();
    assert_eq!(outbound.poll_write(&mut cx, at(0), &mut Slow::default()), Poll::Ready(CloseReason::ServerStopped));
}

fn client() -> SocketAddr {
    "192.0.2.7:4000".parse().unwrap()
}

fn outbound() -> Outbound {
    Outbound::to(client(), Transport::Tcp, Rc::default())
}

fn at(milliseconds: u64) -> Instant {
    Instant::from_elapsed(Duration::from_millis(milliseconds))
}

fn socket() -> SocketId {
    SocketId::for_tests(2)
}

/// Returns the number of written and of dropped messages.
fn counts(outbound: &mut Outbound) -> (u64, u64) {
    let mut counts = (0, 0);
    for settled in outbound.settled() {
        match settled.outcome {
            Outcome::RelayedToClient => counts.0 += settled.packets,
            _ => counts.1 += settled.packets,
        }
    }
    counts
}

#[test]
fn old_data_is_dropped_in_whole_messages_and_responses_are_not() {
    let (mut outbound, mut stream) = (outbound(), Slow { room: 3, ..Slow::default() });
    let mut cx = Context::from_waker(Waker::noop());
    assert!(outbound.push_data(at(0), socket(), 4, [b"@one", b"", b""]));
    assert!(outbound.push_data(at(0), socket(), 4, [b"@two", b"", b""]));
    assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
    outbound.push_response(b"response", true);
    assert!(outbound.push_data(at(200), socket(), 6, [b"@three", b"", b""]));
    stream.room = 100;
    assert!(outbound.poll_write(&mut cx, at(301), &mut stream).is_pending());
    // The first message was begun. The second is too old.
    assert_eq!(stream.taken, b"@oneresponse@three");
    assert_eq!(counts(&mut outbound), (2, 1));
    assert_eq!(outbound.counted, 0);
}

#[test]
fn a_burst_of_a_key_frame_loses_nothing() {
    let (mut outbound, mut stream) = (outbound(), Slow::default());
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..400 {
        assert!(outbound.push_data(at(0), socket(), 1_000, [&[7; 1_000], b"", b""]));
    }
    // A client 40 ms away takes the frame in several round trips.
    for (round, room) in [15_000, 30_000, 60_000, 120_000, 240_000].into_iter().enumerate() {
        stream.room = room;
        assert!(outbound.poll_write(&mut cx, at(40 * round as u64), &mut stream).is_pending());
    }
    assert_eq!((stream.taken.len(), counts(&mut outbound)), (400_000, (400, 0)));
}

#[test]
fn a_burst_reuses_the_buffer_of_the_last_one() {
    let (mut outbound, mut stream) = (outbound(), Slow { room: usize::MAX, ..Slow::default() });
    let mut cx = Context::from_waker(Waker::noop());
    let mut burst = |outbound: &mut Outbound| {
        for _ in 0..50 {
            assert!(outbound.push_data(at(0), socket(), 1_000, [&[7; 1_000], b"", b""]));
        }
        let buffer = (outbound.data.bytes.capacity(), outbound.data.bytes.as_slices().0.as_ptr());
        assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
        assert_eq!(outbound.data.bytes.capacity(), 0);
        buffer
    };
    let first = burst(&mut outbound);
    assert_eq!(burst(&mut outbound), first);
    // Another connection uses the same buffer.
    let mut other = Outbound::to(client(), Transport::Tcp, Rc::clone(&outbound.shared));
    assert_eq!(burst(&mut other), first);
}

#[test]
fn every_message_is_settled_when_the_connection_ends() {
    let (mut outbound, mut stream) = (outbound(), Slow { room: 6, ..Slow::default() });
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        assert!(outbound.push_data(at(0), socket(), 4, [b"@one", b"", b""]));
    }
    assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
    outbound.abandon();
    assert_eq!((counts(&mut outbound), outbound.shared.held.get()), ((1, 2), 0));
}

/// Returns queues with this many messages of 100 bytes each.
fn queues<const COUNT: usize>(messages: [usize; COUNT]) -> (Rc<Shared>, [Rc<RefCell<Outbound>>; COUNT]) {
    let shared = Rc::<Shared>::default();
    let queues = messages.map(|count| {
        let mut queue = Outbound::to(client(), Transport::Tcp, Rc::clone(&shared));
        for _ in 0..count {
            assert!(queue.push_data(at(0), socket(), 100, [&[7; 100], b"", b""]));
        }
        Rc::new(RefCell::new(queue))
    });
    (shared, queues)
}

fn waiting(queues: &[Rc<RefCell<Outbound>>]) -> Vec<usize> {
    queues.iter().map(|queue| queue.borrow().waiting()).collect()
}

/// Returns the memory of all queues.
fn memory(queues: &[Rc<RefCell<Outbound>>]) -> usize {
    queues.iter().map(|queue| queue.borrow().control.capacity() + queue.borrow().data.memory()).sum()
}

#[test]
fn the_largest_queues_are_emptied_when_all_together_are_too_long() {
    let (shared, queues) = queues([1, 40, 2, 3]);
    let held = shared.held.get();
    assert_eq!(held, memory(&queues));
    shared.limit(held, queues.iter());
    assert_eq!(waiting(&queues), [100, 4_000, 200, 300]);
    shared.limit(held - 1, queues.iter());
    assert_eq!(waiting(&queues), [100, 0, 200, 300]);
    assert_eq!(shared.held.get(), memory(&queues));
    let full = Outcome::Dropped(DropReason::SendBufferFull);
    let dropped: Vec<_> = queues[1].borrow_mut().settled().map(|settled| (settled.outcome, settled.packets)).collect();
    assert_eq!(dropped, [(full, 40)]);
    drop(queues);
    assert_eq!(shared.held.get(), 0);
}

#[test]
fn connections_end_when_messages_that_were_begun_are_too_long_together() {
    let (shared, queues) = queues([1, 40, 2, 3]);
    let mut cx = Context::from_waker(Waker::noop());
    for (queue, room) in queues.iter().zip([1, 50, 90, 90]) {
        let mut stream = Slow { room, ..Slow::default() };
        assert!(queue.borrow_mut().poll_write(&mut cx, at(0), &mut stream).is_pending());
    }
    let rests = 99 + 50 + 10 + 10 + 4 * size_of::<Message>();
    shared.limit(rests * 4 / 3 + 4, queues.iter());
    assert_eq!(waiting(&queues), [99, 50, 10, 10]);
    assert!(!queues.iter().any(|queue| queue.borrow().overflowed));
    shared.limit(rests - 1, queues.iter());
    let ended: Vec<_> = queues.iter().map(|queue| queue.borrow().overflowed).collect();
    assert_eq!((ended, waiting(&queues)), (vec![true, false, false, false], vec![0, 50, 10, 10]));
    assert_eq!(counts(&mut queues[0].borrow_mut()), (0, 1));
    assert_eq!(shared.held.get(), memory(&queues));
    let closed = queues[0].borrow_mut().poll_write(&mut cx, at(0), &mut Slow::default());
    assert_eq!(closed, Poll::Ready(CloseReason::Unread));
}

#[test]
fn the_connection_with_the_most_unread_responses_ends_when_all_together_are_too_long() {
    let (shared, queues) = queues([0, 0, 0]);
    for (queue, responses) in queues.iter().zip([10, 150, 20]) {
        for _ in 0..responses {
            queue.borrow_mut().push_response(&[7; 100], false);
        }
    }
    let held = shared.held.get();
    assert_eq!(held, memory(&queues));
    shared.limit(held - 1, queues.iter());
    let ended: Vec<_> = queues.iter().map(|queue| queue.borrow().overflowed).collect();
    assert_eq!(ended, [false, true, false]);
    assert_eq!(shared.held.get(), memory(&queues));
}

#[test]
fn empty_buffers_are_part_of_the_memory_of_all_queues() {
    let (shared, queues) = queues([20, 40]);
    let mut stream = Slow { room: usize::MAX, ..Slow::default() };
    let mut cx = Context::from_waker(Waker::noop());
    assert!(queues[1].borrow_mut().poll_write(&mut cx, at(0), &mut stream).is_pending());
    let spare: usize = shared.spare.borrow().iter().map(Buffer::memory).sum();
    assert!(spare >= 4_000);
    assert_eq!(shared.held.get(), memory(&queues) + spare);
    shared.limit(memory(&queues) * 4 / 3 + 4, queues.iter());
    assert_eq!((waiting(&queues), shared.held.get()), (vec![2_000, 0], memory(&queues)));
}

#[test]
fn the_rest_of_a_message_that_was_begun_keeps_no_large_buffer() {
    let (mut outbound, mut stream) = (outbound(), Slow { room: 400, ..Slow::default() });
    let mut cx = Context::from_waker(Waker::noop());
    while outbound.push_data(at(0), socket(), 1_000, [&[7; 1_000], b"", b""]) {}
    assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
    assert!(outbound.data.memory() > MAX_DATA);
    outbound.drop_old(at(300));
    assert_eq!(outbound.waiting(), 600);
    assert!(outbound.data.memory() <= LARGEST_SPARSE, "{}", outbound.data.memory());
    stream.room = 600;
    assert!(outbound.poll_write(&mut cx, at(300), &mut stream).is_pending());
    assert_eq!(counts(&mut outbound), (1, 523));
}

#[test]
fn the_data_of_an_allocation_that_has_ended_is_dropped() {
    let (mut outbound, mut stream) = (outbound(), Slow { room: 6, ..Slow::default() });
    let mut cx = Context::from_waker(Waker::noop());
    let other = SocketId::for_tests(4);
    for socket in [socket(), socket(), socket(), other] {
        assert!(outbound.push_data(at(0), socket, 4, [b"@one", b"", b""]));
    }
    assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
    outbound.drop_data_of(other.allocation());
    assert_eq!(outbound.waiting(), 10, "older data of another allocation is in front");
    outbound.drop_data_of(socket().allocation());
    // The second message was begun. The last one belongs to another allocation.
    assert_eq!(outbound.waiting(), 6);
    let settled: Vec<_> = outbound.settled().map(|settled| (settled.outcome, settled.packets)).collect();
    let ended = Outcome::Dropped(DropReason::AllocationEnded);
    assert_eq!(settled, [(Outcome::RelayedToClient, 1), (ended, 1)]);
}

#[test]
fn data_above_the_limit_of_a_client_is_refused() {
    let mut outbound = outbound();
    assert!(outbound.push_data(at(0), socket(), MAX_DATA, [&vec![7; MAX_DATA], b"", b""]));
    assert!(!outbound.push_data(at(299), socket(), 1, [b"x", b"", b""]));
    assert!(outbound.push_data(at(300), socket(), 1, [b"x", b"", b""]));
    assert_eq!(counts(&mut outbound), (0, 1));
}

// An allocation has two relay sockets, whose messages may alternate.
#[test]
fn an_idle_connection_keeps_no_memory_for_the_results_of_many_messages() {
    let (mut outbound, mut stream) = (outbound(), Slow { room: 500, ..Slow::default() });
    let mut cx = Context::from_waker(Waker::noop());
    for number in 0..1_000 {
        assert!(outbound.push_data(at(0), SocketId::for_tests(number % 2), 1, [b"x", &[], &[]]));
    }
    assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
    outbound.drop_old(at(301));
    let results: Vec<_> = outbound.settled.iter().map(|result| (result.flow, result.packets)).collect();
    let of = |number| Flow::Relay(SocketId::for_tests(number));
    assert_eq!(results, [(of(0), 250), (of(1), 250), (of(0), 250), (of(1), 250)]);
    assert_eq!(counts(&mut outbound), (500, 500));
    assert_eq!(outbound.settled.capacity(), 4);
}

// With a result for each message, this would take more memory than the messages.
#[test]
fn dropping_small_messages_of_two_sockets_frees_their_memory() {
    let (shared, queues) = queues([0, 0]);
    for queue in &queues {
        for number in 0..20_000 {
            assert!(queue.borrow_mut().push_data(at(0), SocketId::for_tests(number % 2), 1, [b"@", b"x", b""]));
        }
    }
    let held = shared.held.get();
    shared.limit(held - 1, queues.iter());
    assert_eq!(waiting(&queues).iter().filter(|waiting| **waiting == 0).count(), 1);
    let results = |queue: &Rc<RefCell<Outbound>>| queue.borrow().settled.capacity() * size_of::<SendResult>();
    let present = memory(&queues) + queues.iter().map(results).sum::<usize>();
    assert!(present <= held / 2 + 1_000, "{present} of {held}");
}
