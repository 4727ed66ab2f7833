//! Ranks on NVIDIA GPUs: parameters and gradients pass by NCCL, the few numbers of the host by TCP.
//!
//! NCCL is opened when the first tensor of a GPU is reduced; nothing of it is needed to build or to start.
//! Sums are NCCL's, in an order of its own: the same on every run of one number of ranks on one kind of
//! machine, another on another number. One group of calls a collective; NCCL joins them.

use std::cell::OnceCell;
use std::ffi::{c_char, c_void};

use cudarc::driver::result::stream;
use cudarc::driver::sys::CUstream;
use cudarc::nccl::result as nccl;
use cudarc::nccl::result::NcclError;
use cudarc::nccl::sys;

use super::tcp::Tcp;
use super::wire::OverWire;
use super::{Comm, Part};
use crate::{DType, Error, Result, Tensor};

const WHAT: &str = "NCCL";

/// One rank on a GPU.
pub struct Nccl {
    host: OverWire<Tcp>,
    /// Opened by the first collective of device memory, when this thread has a GPU.
    group: OnceCell<Group>,
}

struct Group {
    comm: sys::ncclComm_t,
    stream: CUstream,
}

impl Nccl {
    /// Over connected ranks.
    pub fn over(host: OverWire<Tcp>) -> Self {
        Self { host, group: OnceCell::new() }
    }

    fn group(&self) -> Result<&Group> {
        if self.group.get().is_none() {
            let group = Group::open(&self.host)?;
            // Nobody else can have set it: handles stay on their thread.
            let _ = self.group.set(group);
        }
        Ok(self.group.get().expect("set above"))
    }

    /// Calls `each` with the address and length of every part of `data`, as one group, in the order of
    /// the work on its device. `None`: it lies on the host.
    fn on_device(
        &self,
        data: &Tensor,
        parts: &[Part],
        each: &dyn Fn(&Group, &Part, *mut c_void) -> std::result::Result<(), NcclError>,
    ) -> Result<Option<()>> {
        let Some((driver, at)) = data.device() else { return Ok(None) };
        if data.dtype() != DType::F32 {
            let (have, need) = (data.dtype().name(), "f32");
            return Err(Error::DType { op: "collective", have, need });
        }
        let group = self.group()?;
        // The work queued so far makes what is sent.
        driver.synchronize()?;
        nccl::group_start().map_err(failed)?;
        let sent = parts.iter().try_for_each(|part| {
            // A part that leaves the tensor is a fault of the program: the same check as everywhere.
            let _ = data.slice(part.range.clone());
            each(group, part, (at + 4 * part.range.start as u64) as *mut c_void)
        });
        let ended = nccl::group_end();
        sent.map_err(failed)?;
        ended.map_err(failed)?;
        // SAFETY: the stream is the group's own and lives as long as it.
        unsafe { stream::synchronize(group.stream) }
            .map_err(|e| Error::Device { what: WHAT, detail: format!("{e:?}") })?;
        Ok(Some(()))
    }
}

impl Group {
    fn open(host: &OverWire<Tcp>) -> Result<Self> {
        let (rank, world) = (host.rank(), host.world());
        // SAFETY: looks for a library; its initialisers are NVIDIA's.
        if !unsafe { sys::is_culib_present() } {
            let detail = "libnccl.so.2 is not there: install it (pip install nvidia-nccl-cu13, or your \
                          system's package) and put its folder into LD_LIBRARY_PATH, or use --comm tcp";
            return Err(Error::Device { what: WHAT, detail: detail.into() });
        }
        let mut id = Vec::new();
        if rank == 0 {
            id = nccl::get_uniqueid().map_err(failed)?.internal.map(|c| c as u8).to_vec();
        }
        host.broadcast(&mut id)?;
        let bytes: [u8; 128] = id.try_into().map_err(|_| Error::Rank {
            rank: 0,
            detail: "gave an NCCL id of another length: use the same program everywhere".into(),
        })?;
        let id = sys::ncclUniqueId { internal: bytes.map(|b| b as c_char) };
        let mut comm = std::ptr::null_mut();
        // SAFETY: `comm` outlives the call, rank < world (the rendezvous has seen to it), and this thread
        // has a GPU: a tensor of it was given.
        unsafe { nccl::comm_init_rank(&mut comm, world as i32, id, rank as i32) }
            .map_err(failed)?;
        let stream = stream::create(stream::StreamKind::NonBlocking)
            .map_err(|e| Error::Device { what: WHAT, detail: format!("{e:?}") })?;
        Ok(Self { comm, stream })
    }
}

fn failed(e: NcclError) -> Error {
    let detail = format!("{:?} (NCCL_DEBUG=INFO says more)", e.0);
    Error::Device { what: WHAT, detail }
}

impl Comm for Nccl {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn world(&self) -> usize {
        self.host.world()
    }

    fn name(&self) -> &'static str {
        "nccl"
    }

    fn reduce_scatter(&self, data: &Tensor, parts: &[Part]) -> Result<()> {
        use sys::{ncclDataType_t::ncclFloat32 as F32, ncclRedOp_t::ncclSum as SUM};
        let each = |group: &Group, part: &Part, at: *mut c_void| {
            let (n, comm, stream) = (part.range.len(), group.comm, group.stream.cast());
            // SAFETY: `at` and `n` are a part of a live tensor of this device (`on_device`), which nothing
            // else touches until the stream is done; in place, as NCCL allows.
            unsafe {
                match part.owner {
                    Some(owner) => nccl::reduce(at, at, n, F32, SUM, owner as i32, comm, stream),
                    None => nccl::all_reduce(at, at, n, F32, SUM, comm, stream),
                }
            }
            .map(|_| ())
        };
        match self.on_device(data, parts, &each)? {
            Some(()) => Ok(()),
            None => self.host.reduce_scatter(data, parts),
        }
    }

    fn all_gather(&self, data: &Tensor, parts: &[Part]) -> Result<()> {
        let each = |group: &Group, part: &Part, at: *mut c_void| {
            let Some(owner) = part.owner else { return Ok(()) };
            let (n, comm, stream) = (part.range.len(), group.comm, group.stream.cast());
            let f32 = sys::ncclDataType_t::ncclFloat32;
            // SAFETY: as in `reduce_scatter`.
            unsafe { nccl::broadcast(at, at, n, f32, owner as i32, comm, stream) }.map(|_| ())
        };
        match self.on_device(data, parts, &each)? {
            Some(()) => Ok(()),
            None => self.host.all_gather(data, parts),
        }
    }

    fn all_reduce_sum(&self, values: &mut [f64]) -> Result<()> {
        self.host.all_reduce_sum(values)
    }

    fn all_reduce_max(&self, values: &mut [f64]) -> Result<()> {
        self.host.all_reduce_max(values)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()> {
        self.host.broadcast(bytes)
    }
}
