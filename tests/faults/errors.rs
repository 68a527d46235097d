//! System calls of a running server that fail, injected with ptrace.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use turnserver::clock::Clock;

use crate::support::{TIMEOUT, skip};

/// Lets system calls of some threads fail until it is dropped.
pub(super) struct Failing {
    shared: Arc<Shared>,
    tracer: Option<JoinHandle<()>>,
}

/// The system call with which tokio waits for events.
#[cfg(target_arch = "x86_64")]
pub(super) const EPOLL_WAIT: c_long = libc::SYS_epoll_wait;
#[cfg(not(target_arch = "x86_64"))]
pub(super) const EPOLL_WAIT: c_long = libc::SYS_epoll_pwait;

/// A system call.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) number: c_long,
    /// The first argument.
    pub(super) argument: c_long,
}

#[derive(Default)]
struct Shared {
    started: AtomicBool,
    ended: AtomicBool,
    failures: AtomicU64,
}

impl Failing {
    /// Lets these system calls fail in the threads whose names begin with `name`. `None` without the privilege to trace
    /// the process; the test is [skipped](skip) then.
    pub(super) fn start(process: u32, name: &str, calls: fn(Call) -> bool, error: Errno) -> Option<Self> {
        if !may_trace() {
            return None;
        }
        let threads = threads(process, name);
        assert!(!threads.is_empty(), "no thread has a name that begins with {name}");
        let shared = Arc::<Shared>::default();
        let ours = Arc::clone(&shared);
        // The kernel detaches the threads when the tracer ends.
        let tracer = thread::spawn(move || trace(&threads, calls, error, &ours));
        while !shared.started.load(Ordering::Acquire) {
            if tracer.is_finished() {
                skip("no privilege to trace a process");
                return None;
            }
            thread::yield_now();
        }
        Some(Self { shared, tracer: Some(tracer) })
    }

    /// Waits until this many system calls have failed.
    pub(super) fn wait_for_failures(&self, count: u64) {
        let clock = Clock::start();
        while self.shared.failures.load(Ordering::Relaxed) < count {
            assert!(clock.elapsed() < TIMEOUT, "fewer than {count} system calls failed");
            thread::yield_now();
        }
    }
}

impl Failing {
    /// Lets the system calls succeed again. Returns how many have failed.
    pub(super) fn end(mut self) -> u64 {
        self.join();
        self.shared.failures.load(Ordering::Relaxed)
    }

    fn join(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let ended = self.tracer.take().map_or(Ok(()), JoinHandle::join);
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.join();
    }
}

fn may_trace() -> bool {
    if !machine::IS_KNOWN {
        skip("the registers of this architecture are not known");
    }
    machine::IS_KNOWN
}

/// Returns the threads of a process whose names begin with this.
pub(super) fn threads(process: u32, name: &str) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|task| task.unwrap().path());
    let named = tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.starts_with(name)));
    named.map(|task| Pid::from_raw(task.file_name().unwrap().to_str().unwrap().parse().unwrap())).collect()
}

/// Traces threads until `ended` is set or the threads have ended.
fn trace(threads: &[Pid], calls: fn(Call) -> bool, error: Errno, shared: &Shared) {
    for thread in threads {
        if ptrace::seize(*thread, Options::PTRACE_O_TRACESYSGOOD).is_err() {
            return;
        }
        ptrace::interrupt(*thread).unwrap();
    }
    // Only the threads that this thread traces: other tests have children.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
    // The threads in a system call, and those of them whose call is to fail.
    let (mut inside, mut failing) = (BTreeSet::new(), BTreeSet::new());
    let mut stopped = 0;
    while !shared.ended.load(Ordering::Relaxed) || !failing.is_empty() {
        let (thread, signal) = match waitpid(None, Some(flags)) {
            Ok(WaitStatus::StillAlive) => {
                thread::yield_now();
                continue;
            }
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                if inside.insert(thread) {
                    if calls(machine::call(thread)) && !shared.ended.load(Ordering::Relaxed) {
                        machine::skip_call(thread);
                        failing.insert(thread);
                    }
                } else {
                    inside.remove(&thread);
                    if failing.remove(&thread) {
                        machine::set_result(thread, error);
                        shared.failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
                (thread, None)
            }
            // The stop that `interrupt` has requested.
            Ok(WaitStatus::PtraceEvent(thread, ..)) => {
                stopped += 1;
                (thread, None)
            }
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            Ok(WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..)) => {
                failing.remove(&thread);
                continue;
            }
            Ok(_) => continue,
            Err(_) => return,
        };
        // A thread that has been killed meanwhile cannot go on.
        let _ = ptrace::syscall(thread, signal.filter(|signal| *signal != Signal::SIGTRAP));
        if stopped == threads.len() {
            shared.started.store(true, Ordering::Release);
        }
    }
}

/// The registers of threads that have stopped.
#[cfg(target_arch = "x86_64")]
mod machine {
    use super::{Call, Errno, Pid, ptrace};

    pub(super) const IS_KNOWN: bool = true;

    /// Returns the system call at which a thread has stopped.
    pub(super) fn call(thread: Pid) -> Call {
        let registers = ptrace::getregs(thread).unwrap();
        Call { number: registers.orig_rax.cast_signed(), argument: registers.rdi.cast_signed() }
    }

    /// Makes the kernel skip the system call at which a thread has stopped.
    pub(super) fn skip_call(thread: Pid) {
        let mut registers = ptrace::getregs(thread).unwrap();
        registers.orig_rax = u64::MAX;
        ptrace::setregs(thread, registers).unwrap();
    }

    pub(super) fn set_result(thread: Pid, error: Errno) {
        let mut registers = ptrace::getregs(thread).unwrap();
        registers.rax = (-i64::from(error as i32)).cast_unsigned();
        ptrace::setregs(thread, registers).unwrap();
    }

    pub(super) fn jump_to_nowhere(thread: Pid) {
        let mut registers = ptrace::getregs(thread).unwrap();
        // The kernel does not repeat the system call in which the thread waits.
        (registers.rip, registers.orig_rax) = (0, u64::MAX);
        ptrace::setregs(thread, registers).unwrap();
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod machine {
    use super::{Call, Errno, Pid};

    pub(super) const IS_KNOWN: bool = false;

    pub(super) fn call(_: Pid) -> Call {
        unreachable!("the test is skipped")
    }

    pub(super) fn skip_call(_: Pid) {}

    pub(super) fn set_result(_: Pid, _: Errno) {}

    pub(super) fn jump_to_nowhere(_: Pid) {}
}

/// Makes a thread execute what is not in memory. Returns `false` without the privilege to trace the process; the test is
/// [skipped](skip) then.
pub(super) fn crash(process: u32, name: &str) -> bool {
    if !may_trace() {
        return false;
    }
    let [thread] = threads(process, name)[..] else { panic!("one thread has the name {name}") };
    if ptrace::seize(thread, Options::empty()).is_err() {
        skip("no privilege to trace a process");
        return false;
    }
    ptrace::interrupt(thread).unwrap();
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    machine::jump_to_nowhere(thread);
    ptrace::detach(thread, None).unwrap();
    true
}
