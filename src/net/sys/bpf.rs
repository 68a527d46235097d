//! The maps and links of an XDP program.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, FromRawFd as _, RawFd};

use aya::maps::{MapData, MapError, MapType};
use aya::util::nr_cpus;

use super::*;

/// A BPF map of the type per-CPU array, whose elements consist of 64-bit words.
pub(crate) struct PerCpuArray {
    map: MapData,
    /// The words of an element on all CPUs.
    words: usize,
    keys: Vec<u32>,
    values: Vec<u64>,
}

/// The part of `union bpf_attr` for the commands on batches of elements.
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_DETACH: libc::c_int = 34;
/// The most elements that one call reads, which takes less than a millisecond.
const LARGEST_BATCH: usize = 1024;

impl PerCpuArray {
    /// Uses a map, if it is such an array with this number of words for each CPU.
    pub(crate) fn new(map: MapData, words: usize) -> Result<Self, MapError> {
        let info = map.info()?;
        let map_type = info.map_type()?;
        if map_type != MapType::PerCpuArray {
            return Err(MapError::InvalidMapType { map_type: map_type as u32 });
        }
        let size = usize::try_from(info.value_size()).unwrap_or(usize::MAX);
        if size != 8 * words {
            return Err(MapError::InvalidValueSize { size, expected: 8 * words });
        }
        let cpus = nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
        Ok(Self { map, words: words * cpus, keys: Vec::new(), values: Vec::new() })
    }

    /// Reads `count` consecutive elements. `each` gets the words of one element, of all CPUs in order.
    pub(crate) fn read(&mut self, first: u32, count: usize, mut each: impl FnMut(&[u64])) -> io::Result<()> {
        let (mut next, mut left) = (first, count);
        while left > 0 {
            let batch = self.look_up(next, left.min(LARGEST_BATCH))?;
            self.values.chunks_exact(self.words).take(batch).for_each(&mut each);
            left -= batch;
            next = next.wrapping_add(u32::try_from(batch).unwrap_or(u32::MAX));
        }
        Ok(())
    }

    /// Reads up to `count` elements into `values`. Returns how many: at least one.
    fn look_up(&mut self, first: u32, count: usize) -> io::Result<usize> {
        self.keys.resize(count, 0);
        self.values.resize(count * self.words, 0);
        // The kernel starts after this index, and at 0 after the largest one.
        let (before, mut last) = (first.wrapping_sub(1), 0_u32);
        let mut attributes = BatchAttributes {
            in_batch: ptr::from_ref(&before).expose_provenance() as u64,
            out_batch: (&raw mut last).expose_provenance() as u64,
            keys: self.keys.as_mut_ptr().expose_provenance() as u64,
            values: self.values.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            map: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: `new` has compared the type and the size of the elements. The kernel writes at most `count` keys of
        // four bytes and `count` elements of `words` words, for which the vectors have room; `last` has room for a key.
        match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) } {
            Ok(_) => {}
            // The array ended. `count` is the number of elements that were read.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        match usize::try_from(attributes.count) {
            // After the last element, the kernel starts again at the first.
            Ok(read) if read > 0 && self.keys.first() == Some(&first) => Ok(read.min(count)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Detaches the program of the link that is pinned at `path`.
pub(crate) fn detach_pinned_link(path: &CStr) -> io::Result<()> {
    #[repr(C)]
    struct ObjectAttributes {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    #[repr(C)]
    struct LinkAttributes {
        link: u32,
    }
    let mut attributes = ObjectAttributes { path: path.as_ptr().expose_provenance() as u64, descriptor: 0, flags: 0 };
    // SAFETY: the kernel reads the path up to its end.
    let descriptor = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the call has returned a new descriptor, which nothing else closes.
    let link = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: the attributes contain no pointer.
    unsafe { bpf(BPF_LINK_DETACH, &mut LinkAttributes { link: link.as_raw_fd().cast_unsigned() }) }.map(drop)
}

/// Calls `bpf`.
///
/// # Safety
/// `T` is the part of `union bpf_attr` for the command, without padding. Its pointers are valid for what the command
/// does.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<usize> {
    let (attributes, size) = (ptr::from_mut(attributes), size_of::<T>());
    // SAFETY: the kernel reads and writes at most `size` bytes of the attributes. The caller vouches for the rest.
    let call = || unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    retry(|| isize::try_from(call()).unwrap_or(-1))
}
