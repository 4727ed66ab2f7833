//! A real GPU: the driver API, NVRTC (`compile`) and cuBLASLt (`products`), through cudarc's bindings.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys as cu_sys;

use super::driver::{Arg, Driver, Grid, Mark, Product};
use super::libraries;
use crate::{Error, Result};
use products::Products;

mod compile;
mod products;

/// Bytes that are copied to the host at a time.
const STAGING: usize = 4 << 20;

/// A GPU of this machine.
#[derive(Clone, Debug)]
pub struct GpuInfo {
    /// Number.
    pub ordinal: usize,
    /// `NVIDIA H100 80GB HBM3`
    pub name: String,
    /// Compute capability: (9, 0).
    pub capability: (i32, i32),
    /// Bytes of its memory.
    pub bytes: usize,
    /// Multiprocessors.
    pub multiprocessors: i32,
}

/// The GPUs of this machine; none where there is no driver.
///
/// Errors: [`Error::Device`] when the driver is there and fails.
pub fn gpus() -> Result<Vec<GpuInfo>> {
    // The driver alone: every start of the program comes by here.
    if !libraries::has_driver() {
        return Ok(Vec::new());
    }
    match cu::init() {
        Err(DriverError(cu_sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Vec::new()),
        other => other.map_err(driver_error)?,
    }
    let count = cu::device::get_count().map_err(driver_error)?;
    (0..count as usize).map(info).collect()
}

fn info(ordinal: usize) -> Result<GpuInfo> {
    use cu_sys::CUdevice_attribute as A;
    let device = cu::device::get(ordinal as i32).map_err(driver_error)?;
    // SAFETY: the device was just given by the driver.
    let attribute = |a| unsafe { cu::device::get_attribute(device, a) }.map_err(driver_error);
    Ok(GpuInfo {
        ordinal,
        name: cu::device::get_name(device).map_err(driver_error)?,
        capability: (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        bytes: unsafe { cu::device::total_mem(device) }.map_err(driver_error)?,
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

fn driver_error(e: DriverError) -> Error {
    let text = e.error_string().map(|s| s.to_string_lossy().into_owned());
    Error::Device { what: "GPU", detail: text.unwrap_or_else(|_| format!("{e:?}")) }
}

/// One GPU, with a stream of work.
pub(super) struct Gpu {
    info: GpuInfo,
    /// Bytes of shared memory that a block can ask for.
    shared: usize,
    stream: cu_sys::CUstream,
    modules: Vec<cu_sys::CUmodule>,
    kernels: RefCell<HashMap<String, Kernel>>,
    products: Products,
    /// STAGING bytes of the host that the GPU reads and writes by itself.
    staging: *mut c_void,
    events: RefCell<Vec<cu_sys::CUevent>>,
    /// Bytes of every piece of memory that is held.
    held: RefCell<HashMap<u64, usize>>,
    /// Small pieces that were given back, by bytes: a step of generation asks for the same ones again,
    /// and the driver would wait for the GPU each time.
    spare: RefCell<HashMap<usize, Vec<u64>>>,
}

/// Pieces up to this many bytes are kept when they are given back.
const SMALL: usize = 1 << 20;

#[derive(Clone, Copy)]
struct Kernel {
    function: cu_sys::CUfunction,
    /// Bytes of shared memory that a launch may ask for so far.
    shared: u32,
}

impl Gpu {
    /// Opens the libraries and the GPU, compiles the kernels or takes them from the disk.
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        libraries::load()?;
        let all = gpus()?;
        let Some(info) = all.get(ordinal).cloned() else {
            let detail = format!("there is no GPU {ordinal}: the driver shows {}", all.len());
            return Err(Error::Device { what: "GPU", detail });
        };
        if info.capability < (8, 0) {
            let (major, minor) = info.capability;
            let detail = format!(
                "{} has compute capability {major}.{minor}: bf16 needs 8.0 (Ampere) or later",
                info.name
            );
            return Err(Error::Device { what: "GPU", detail });
        }
        let device = cu::device::get(ordinal as i32).map_err(driver_error)?;
        // SAFETY: the device was given by the driver; its primary context stays for the process.
        unsafe {
            let context = cu::primary_ctx::retain(device).map_err(driver_error)?;
            cu::ctx::set_current(context).map_err(driver_error)?;
        }
        let most =
            cu_sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device was given by the driver.
        let shared = unsafe { cu::device::get_attribute(device, most) }.map_err(driver_error)?;
        let shared = usize::try_from(shared).unwrap_or(0);
        let stream =
            cu::stream::create(cu::stream::StreamKind::NonBlocking).map_err(driver_error)?;
        let cubins = compile::cubins(info.capability)?;
        let load = |cubin: &Vec<u8>| {
            // SAFETY: a whole cubin, as the compiler gave it.
            unsafe { cu::module::load_data(cubin.as_ptr().cast()) }.map_err(driver_error)
        };
        let modules = cubins.iter().map(load).collect::<Result<_>>()?;
        let products = Products::open()?;
        // SAFETY: freed when the GPU is closed; written before it is read (`download`).
        let staging = unsafe { cu::malloc_host(STAGING, 0) }.map_err(driver_error)?;
        let (kernels, events, held, spare) = Default::default();
        Ok(Self { info, shared, stream, modules, kernels, products, staging, events, held, spare })
    }

    fn kernel(&self, name: &str, shared: u32) -> Result<cu_sys::CUfunction> {
        if let Some(kernel) = self.kernels.borrow().get(name)
            && kernel.shared >= shared
        {
            return Ok(kernel.function);
        }
        let c_name = std::ffi::CString::new(name).expect("names of kernels have no zeros");
        // SAFETY: the modules stay loaded.
        let find =
            |m: &cu_sys::CUmodule| unsafe { cu::module::get_function(*m, c_name.clone()) }.ok();
        let Some(function) = self.modules.iter().find_map(find) else {
            return Err(Error::Device { what: "GPU", detail: format!("no kernel {name}") });
        };
        let shared = shared.max(48 << 10);
        if shared > 48 << 10 {
            let a = cu_sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe { cu::function::set_function_attribute(function, a, shared as i32) }
                .map_err(driver_error)?;
        }
        self.kernels.borrow_mut().insert(name.into(), Kernel { function, shared });
        Ok(function)
    }

    /// # Safety
    /// As [`Driver::launch`], and the attribute's.
    unsafe fn launch_with(
        &self,
        kernel: &str,
        grid: Grid,
        args: &[Arg],
        attribute: Option<(cu_sys::CUlaunchAttributeID, cu_sys::CUlaunchAttributeValue)>,
    ) -> Result<()> {
        let function = self.kernel(kernel, grid.shared)?;
        let words: Vec<u64> = args.iter().map(|arg| arg.word()).collect();
        let mut pointers: Vec<*mut c_void> =
            words.iter().map(|word| std::ptr::from_ref(word) as *mut c_void).collect();
        let [x, y, z] = grid.blocks;
        let attribute =
            attribute.map(|(id, value)| cu_sys::CUlaunchAttribute_st { id, pad: [0; 4], value });
        let mut attributes: Vec<cu_sys::CUlaunchAttribute> = attribute.into_iter().collect();
        let config = cu_sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the caller's promise; arguments are copied by the call.
        unsafe {
            cu_sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()
        .map_err(|e| match driver_error(e) {
            Error::Device { what, detail } => {
                Error::Device { what, detail: format!("{kernel}: {detail}") }
            }
            other => other,
        })
    }

    fn event(&self) -> Result<cu_sys::CUevent> {
        if let Some(event) = self.events.borrow_mut().pop() {
            return Ok(event);
        }
        cu::event::create(cu_sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(driver_error)
    }
}

impl Driver for Gpu {
    fn name(&self) -> String {
        self.info.name.clone()
    }

    fn capability(&self) -> (i32, i32) {
        self.info.capability
    }

    fn memory(&self) -> Result<(usize, usize)> {
        cu::mem_get_info().map_err(driver_error)
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let size = bytes.max(1).next_multiple_of(512);
        let spare = self.spare.borrow_mut().get_mut(&size).and_then(Vec::pop);
        let at = match spare {
            // Work queued before it was given back runs before what is queued from now on.
            Some(at) => at,
            // SAFETY: given back by `free`, after the work that uses it (the driver waits for it).
            None => match unsafe { cu::malloc_sync(size) } {
                Err(DriverError(cu_sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                    return Err(Error::Memory { bytes });
                }
                other => other.map_err(driver_error)?,
            },
        };
        self.held.borrow_mut().insert(at, size);
        self.zero(at, size)?;
        Ok(at)
    }

    fn free(&self, at: u64) {
        let size = self.held.borrow_mut().remove(&at).unwrap_or(usize::MAX);
        if size <= SMALL {
            self.spare.borrow_mut().entry(size).or_default().push(at);
            return;
        }
        // SAFETY: `at` came from `alloc` and is freed once, by its owner. What cannot be freed is lost
        // with the process: there is nobody to tell.
        let _ = unsafe { cu::free_sync(at) };
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: addresses are of live memory (`Tensor`). Ordinary host memory is staged before the
        // call returns.
        unsafe { cu::memcpy_htod_async(to, from, self.stream) }.map_err(driver_error)
    }

    fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        // Through memory that the GPU writes by itself: several times as fast as into any other.
        for (i, piece) in to.chunks_mut(STAGING).enumerate() {
            let from = from + (i * STAGING) as u64;
            // SAFETY: the staging memory holds STAGING bytes and is this GPU's own; addresses are of
            // live memory (`Tensor`). The slice is whole when the stream is done.
            let staged = unsafe {
                let staged = std::slice::from_raw_parts_mut(self.staging.cast(), piece.len());
                cu::memcpy_dtoh_async(staged, from, self.stream).map_err(driver_error)?;
                staged
            };
            self.synchronize()?;
            piece.copy_from_slice(staged);
        }
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: addresses are of live memory (`Tensor`).
        unsafe { cu::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(driver_error)
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: addresses are of live memory (`Tensor`).
        unsafe { cu::memset_d8_async(at, 0, bytes, self.stream) }.map_err(driver_error)
    }

    unsafe fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
        use cu_sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as EARLY;
        let allowed = cu_sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let is_early = grid.early && self.info.capability >= (9, 0);
        // SAFETY: the caller's promise; kernels that are launched early wait before they touch what
        // earlier ones write (`wait_for_earlier`).
        unsafe { self.launch_with(kernel, grid, args, is_early.then_some((EARLY, allowed))) }
    }

    fn together(&self) -> Option<(usize, usize)> {
        (self.info.capability >= (9, 0) && self.shared > 0)
            .then_some((self.info.multiprocessors as usize, self.shared))
    }

    unsafe fn launch_together(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
        use cu_sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE as TOGETHER;
        let wanted = cu_sys::CUlaunchAttributeValue { cooperative: 1 };
        // SAFETY: the caller's promise; the driver refuses a grid that does not fit at once.
        unsafe { self.launch_with(kernel, grid, args, Some((TOGETHER, wanted))) }
    }

    unsafe fn product(&self, p: &Product) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.products.queue(p, self.stream) }
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is this GPU's own.
        unsafe { cu::stream::synchronize(self.stream) }.map_err(driver_error)
    }

    fn begin_recording(&self) -> Result<bool> {
        let mode = cu_sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is this GPU's own.
        unsafe { cu::stream::begin_capture(self.stream, mode) }.map_err(driver_error)?;
        Ok(true)
    }

    fn end_recording(&self) -> Result<u64> {
        // SAFETY: the stream is this GPU's own, and being captured; the graph is whole, and not needed
        // once it has been instantiated.
        unsafe {
            let graph = cu::stream::end_capture(self.stream).map_err(driver_error)?;
            let flags = cu_sys::CUgraphInstantiate_flags(0);
            let made = cu::graph::instantiate(graph, flags).map_err(driver_error);
            cu::graph::destroy(graph).map_err(driver_error)?;
            Ok(made? as u64)
        }
    }

    fn play(&self, recording: u64) -> Result<()> {
        // SAFETY: a recording of `end_recording` that was not forgotten; its addresses are those of
        // live memory (`Cuda::replayed`).
        unsafe { cu::graph::launch(recording as cu_sys::CUgraphExec, self.stream) }
            .map_err(driver_error)
    }

    fn forget(&self, recording: u64) {
        // Nothing of it may be running.
        let _ = self.synchronize();
        // SAFETY: a recording of `end_recording`, forgotten once.
        let _ = unsafe { cu::graph::exec_destroy(recording as cu_sys::CUgraphExec) };
    }

    fn mark(&self) -> Result<Mark> {
        let event = self.event()?;
        // SAFETY: event and stream are this GPU's own.
        unsafe { cu::event::record(event, self.stream) }.map_err(driver_error)?;
        Ok(event as Mark)
    }

    fn seconds(&self, from: Mark, to: Mark) -> Result<f64> {
        let (from, to) = (from as cu_sys::CUevent, to as cu_sys::CUevent);
        // SAFETY: both are events of `mark`, not yet used up.
        let ms = unsafe {
            cu::event::synchronize(to).map_err(driver_error)?;
            cu::event::elapsed(from, to).map_err(driver_error)?
        };
        self.events.borrow_mut().extend([from, to]);
        Ok(f64::from(ms) / 1e3)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Nothing is left running; the context and its modules go with the process.
        let _ = self.synchronize();
        let spare = std::mem::take(&mut *self.spare.borrow_mut());
        for at in spare.into_values().flatten() {
            // SAFETY: memory of `alloc` that was given back; nobody has it any more.
            let _ = unsafe { cu::free_sync(at) };
        }
        // SAFETY: as above.
        let _ = unsafe { cu::free_host(self.staging) };
    }
}
