//! The device without a GPU: the same kernels, compiled by the machine's C++ compiler and run on the
//! CPU, one thread of a block after another.
//!
//! For tests: it is thousands of times slower than a GPU, and it finds what a GPU hides (shared memory
//! that nobody wrote is not-a-number, warps run in any order).

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::driver::{Arg, Driver, Grid, Mark, Matrix, Product};
use super::source;
use crate::memory::Zeroed;
use crate::ops::Layout;
use crate::{DType, Error, Result};

type Launch =
    unsafe extern "C" fn(*const c_char, *const c_uint, c_uint, usize, *mut *mut c_void) -> c_int;

/// Bytes of memory that was given back and is still held.
const GONE: usize = 64 << 20;

/// What was queued while a recording was made.
enum Queued {
    Launch { kernel: String, grid: Grid, args: Vec<Arg> },
    Product(Product),
    Copy { to: u64, from: u64, bytes: usize },
    Zero { at: u64, bytes: usize },
}

/// Recordings made so far, and the one that is being made.
#[derive(Default)]
struct Tapes {
    made: Vec<Vec<Queued>>,
    running: Option<Vec<Queued>>,
}

/// Kernels on the CPU.
pub(super) struct Emulator {
    tapes: RefCell<Tapes>,
    launch: Launch,
    /// What it takes itself for.
    capability: (i32, i32),
    memory: RefCell<HashMap<u64, (Zeroed, usize)>>,
    /// What was given back last: filled with not-a-number, and nobody else's for a while, so that whoever
    /// still uses it is found out.
    gone: RefCell<VecDeque<(Zeroed, usize)>>,
    /// Keeps `launch` in memory.
    _library: libloading::Library,
}

/// The C++ compiler: `$CXX`, else what the machine calls one.
fn compiler() -> Option<String> {
    let runs = |name: &String| {
        let out = Command::new(name).arg("--version").output();
        out.is_ok_and(|out| out.status.success())
    };
    let names = std::env::var("CXX").into_iter();
    names.chain(["c++", "g++", "clang++"].map(String::from)).find(runs)
}

impl Emulator {
    /// Compiles the kernels into `dir`, once for the same sources.
    ///
    /// Errors: [`Error::Device`] where there is no C++ compiler, or when it refuses the sources.
    pub(super) fn build(dir: &Path, capability: (i32, i32)) -> Result<Self> {
        let bad = |detail: String| Error::Device { what: "emulated GPU", detail };
        let library = compile(dir).map_err(bad)?;
        // SAFETY: the library was compiled from the sources of this crate, whose initialisers only
        // fill a table of kernels.
        let library = unsafe { libloading::Library::new(&library) }
            .map_err(|e| bad(format!("cannot open {}: {e}", library.display())))?;
        // SAFETY: the function has this signature in shim.h.
        let launch = *unsafe { library.get::<Launch>(b"nanochat_shim_launch\0") }
            .map_err(|e| bad(e.to_string()))?;
        let (tapes, memory, gone) = Default::default();
        Ok(Self { tapes, launch, capability, memory, gone, _library: library })
    }
}

impl Emulator {
    /// Keeps what is queued while a recording is made; gives it back otherwise.
    fn record(&self, queued: Queued) -> Option<Queued> {
        match &mut self.tapes.borrow_mut().running {
            Some(tape) => {
                tape.push(queued);
                None
            }
            None => Some(queued),
        }
    }

    /// Errors: the host reads, writes or allocates while a recording is made, which a replay would not
    /// do again.
    fn expect_no_recording(&self, what: &str) -> Result<()> {
        match self.tapes.borrow().running {
            Some(_) => Err(Error::Device {
                what: "emulated GPU",
                detail: format!("{what} within a recording"),
            }),
            None => Ok(()),
        }
    }

    /// Runs what was queued.
    fn run(&self, queued: &Queued) -> Result<()> {
        match queued {
            // SAFETY: the promise of whoever queued it, and its memory lives (`Cuda::replayed`).
            Queued::Launch { kernel, grid, args } => unsafe {
                self.run_kernel(kernel, *grid, args)
            },
            // SAFETY: as above.
            Queued::Product(p) => unsafe { self.run_product(p) },
            Queued::Copy { to, from, bytes } => {
                // SAFETY: addresses come from `alloc` and stay in range (`Tensor`).
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) };
                Ok(())
            }
            Queued::Zero { at, bytes } => {
                // SAFETY: addresses come from `alloc` and stay in range (`Tensor`).
                unsafe { std::ptr::write_bytes(*at as *mut u8, 0, *bytes) };
                Ok(())
            }
        }
    }

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn run_kernel(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
        let name = CString::new(kernel).expect("names of kernels have no zeros");
        let words: Vec<u64> = args.iter().map(|arg| arg.word()).collect();
        let mut pointers: Vec<*mut c_void> =
            words.iter().map(|word| std::ptr::from_ref(word) as *mut c_void).collect();
        // SAFETY: the caller's promise; the shim reads each argument through its pointer, in the
        // argument's own width, from the low end of a word.
        let status = unsafe {
            (self.launch)(
                name.as_ptr(),
                grid.blocks.as_ptr(),
                grid.threads,
                grid.shared as usize,
                pointers.as_mut_ptr(),
            )
        };
        match status {
            0 => Ok(()),
            _ => Err(Error::Device { what: "emulated GPU", detail: format!("no kernel {kernel}") }),
        }
    }

    /// # Safety
    /// As [`Driver::product`].
    unsafe fn run_product(&self, p: &Product) -> Result<()> {
        let s = &p.shape;
        for i in 1..p.batch {
            let next = |m: Matrix, len: usize| Matrix {
                at: m.at + (i * len * m.dtype.size()) as u64,
                ..m
            };
            let d = next(p.d, s.m * s.n);
            let one = Product {
                batch: 1,
                a: next(p.a, s.m * s.k),
                b: next(p.b, s.n * s.k),
                c: next(Matrix { at: p.c, ..p.d }, s.m * s.n).at,
                d,
                ..*p
            };
            // SAFETY: the caller's promise.
            unsafe { self.run_product(&one)? };
        }
        // SAFETY: the caller's promise.
        let (a, b) = unsafe { (read(p.a, s.m * s.k), read(p.b, s.n * s.k)) };
        let mut d = match s.beta {
            0.0 => vec![0.0; s.m * s.n],
            // SAFETY: the caller's promise; C has D's type.
            _ => unsafe { read(Matrix { at: p.c, ..p.d }, s.m * s.n) },
        };
        // Rows of A and columns of B side by side, so that sums run through memory.
        let a = if s.layout == Layout::Tn { transposed(&a, s.k, s.m) } else { a };
        let b = if s.layout == Layout::Nt { b } else { transposed(&b, s.k, s.n) };
        for (a, d) in a.chunks_exact(s.k).zip(d.chunks_exact_mut(s.n)) {
            for (b, d) in b.chunks_exact(s.k).zip(d) {
                let sum = dot(a, b);
                let old = if s.beta == 0.0 { 0.0 } else { s.beta * *d };
                *d = old + p.alpha * sum;
            }
        }
        // SAFETY: the caller's promise.
        unsafe { write(p.d, &d) };
        Ok(())
    }

    fn now_or_later(&self, queued: Queued) -> Result<()> {
        match self.record(queued) {
            Some(queued) => self.run(&queued),
            None => Ok(()),
        }
    }
}

/// The shared library's path, in a folder named by what it was made of.
fn compile(dir: &Path) -> std::result::Result<PathBuf, String> {
    // Tests of one process come here together: the first compiles, the others wait.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = dir.join(format!("nanochat-emulator-{}", &source::fingerprint(&[])[..16]));
    let library = dir.join("kernels.so");
    if library.exists() {
        return Ok(library);
    }
    let compiler =
        compiler().ok_or("no C++ compiler: install one (Debian: apt-get install g++)")?;
    let io = |e: std::io::Error| format!("{}: {e}", dir.display());
    std::fs::create_dir_all(&dir).map_err(io)?;
    let mut all = String::from("#include \"shim.h\"\n");
    for (name, text) in source::texts() {
        std::fs::write(dir.join(name), text).map_err(io)?;
        if name.ends_with(".cu") {
            all.push_str(&format!("#include \"{name}\"\n"));
        }
    }
    std::fs::write(dir.join("all.cpp"), all).map_err(io)?;
    // Two processes may do this at once: each its own file, then a name for the first.
    let made = dir.join(format!("kernels-{}.so", std::process::id()));
    let out = Command::new(&compiler)
        .args(["-O2", "-std=c++17", "-fPIC", "-shared", "-w", "-DNANOCHAT_SHIM", "-o"])
        .arg(&made)
        .arg(dir.join("all.cpp"))
        .output()
        .map_err(|e| format!("{compiler}: {e}"))?;
    if !out.status.success() {
        return Err(format!("{compiler}: {}", String::from_utf8_lossy(&out.stderr)));
    }
    std::fs::rename(&made, &library).map_err(io)?;
    Ok(library)
}

/// Elements of a matrix of f32 or bf16, in f32.
///
/// # Safety
/// `len` elements of the matrix's type lie at its address, in memory of this process.
unsafe fn read(m: Matrix, len: usize) -> Vec<f32> {
    match m.dtype {
        DType::BF16 => {
            // SAFETY: as the function's.
            let bits = unsafe { std::slice::from_raw_parts(m.at as *const u16, len) };
            bits.iter().map(|x| half::bf16::from_bits(*x).to_f32()).collect()
        }
        // SAFETY: as the function's.
        _ => unsafe { std::slice::from_raw_parts(m.at as *const f32, len) }.to_vec(),
    }
}

/// Stores them, rounded to the matrix's type.
///
/// # Safety
/// As [`read`]; nobody else looks at the memory.
unsafe fn write(m: Matrix, values: &[f32]) {
    match m.dtype {
        DType::BF16 => {
            // SAFETY: as the function's.
            let to = unsafe { std::slice::from_raw_parts_mut(m.at as *mut u16, values.len()) };
            for (to, x) in to.iter_mut().zip(values) {
                *to = half::bf16::from_f32(*x).to_bits();
            }
        }
        // SAFETY: as the function's.
        _ => unsafe { std::slice::from_raw_parts_mut(m.at as *mut f32, values.len()) }
            .copy_from_slice(values),
    }
}

impl Driver for Emulator {
    fn name(&self) -> String {
        "emulated GPU".into()
    }

    fn capability(&self) -> (i32, i32) {
        self.capability
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok((8 << 30, 8 << 30))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.expect_no_recording("memory is asked for")?;
        let memory = Zeroed::new(bytes).ok_or(Error::Memory { bytes })?;
        let at = memory.start() as u64;
        self.memory.borrow_mut().insert(at, (memory, bytes));
        Ok(at)
    }

    fn free(&self, at: u64) {
        let Some((memory, bytes)) = self.memory.borrow_mut().remove(&at) else { return };
        // SAFETY: the memory is this emulator's own, `bytes` long.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0xff, bytes) };
        let mut gone = self.gone.borrow_mut();
        gone.push_back((memory, bytes));
        while gone.iter().map(|(_, bytes)| bytes).sum::<usize>() > GONE {
            gone.pop_front();
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.expect_no_recording("the host writes")?;
        // SAFETY: addresses come from `alloc` and stay in range (`Tensor`).
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        self.expect_no_recording("the host reads")?;
        // SAFETY: addresses come from `alloc` and stay in range (`Tensor`).
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.now_or_later(Queued::Copy { to, from, bytes })
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        self.now_or_later(Queued::Zero { at, bytes })
    }

    unsafe fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
        self.now_or_later(Queued::Launch { kernel: kernel.into(), grid, args: args.to_vec() })
    }

    fn together(&self) -> Option<(usize, usize)> {
        // Few blocks, each with little memory: more rounds, slots used again sooner.
        (self.capability >= (9, 0)).then_some((3, 80 << 10))
    }

    unsafe fn launch_together(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
        // SAFETY: the caller's promise. The shim knows which kernels' blocks run together.
        unsafe { self.launch(kernel, grid, args) }
    }

    unsafe fn product(&self, p: &Product) -> Result<()> {
        self.now_or_later(Queued::Product(*p))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn begin_recording(&self) -> Result<bool> {
        self.tapes.borrow_mut().running = Some(Vec::new());
        Ok(true)
    }

    fn end_recording(&self) -> Result<u64> {
        let mut tapes = self.tapes.borrow_mut();
        let tape = tapes.running.take().unwrap_or_default();
        tapes.made.push(tape);
        Ok(tapes.made.len() as u64 - 1)
    }

    fn play(&self, recording: u64) -> Result<()> {
        let tapes = self.tapes.borrow();
        let tape = tapes.made.get(recording as usize).map_or(&[][..], Vec::as_slice);
        tape.iter().try_for_each(|queued| self.run(queued))
    }

    fn forget(&self, recording: u64) {
        if let Some(tape) = self.tapes.borrow_mut().made.get_mut(recording as usize) {
            tape.clear();
        }
    }

    fn mark(&self) -> Result<Mark> {
        Ok(0)
    }

    fn seconds(&self, _from: Mark, _to: Mark) -> Result<f64> {
        Ok(0.0)
    }
}

/// In lanes, which the compiler makes vectors of.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a16.zip(b16) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (i, row) in x.chunks_exact(columns).enumerate() {
        for (j, x) in row.iter().enumerate() {
            out[j * rows + i] = *x;
        }
    }
    out
}
