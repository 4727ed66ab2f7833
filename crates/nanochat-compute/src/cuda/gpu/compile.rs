//! Sources to machine code for the GPU that is there: once, then from the disk.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result as nvrtc, sys};

use crate::cuda::source;
use crate::{Error, Result};

/// Machine code of every file with kernels, for a compute capability.
pub(super) fn cubins(capability: (i32, i32)) -> Result<Vec<Vec<u8>>> {
    let (major, minor) = capability;
    // From 9.0 on a target of its own ("a") has instructions that later ones lack.
    let a = if major >= 9 { "a" } else { "" };
    let target = format!("--gpu-architecture=sm_{major}{minor}{a}");
    let version = version()?;
    let folder = cache().map(|c| c.join(source::fingerprint(&[&target, &version])));
    let read = |folder: &Path, name: &str| std::fs::read(folder.join(name)).ok();
    if let Some(folder) = &folder {
        let there: Option<Vec<_>> = source::units().map(|(name, _)| read(folder, name)).collect();
        if let Some(there) = there {
            return Ok(there);
        }
    }
    let units: Vec<_> = source::units().collect();
    let made: Vec<Result<Vec<u8>>> = std::thread::scope(|scope| {
        let compiling: Vec<_> =
            units.iter().map(|(name, text)| scope.spawn(|| compile(name, text, &target))).collect();
        let failed = |_| Err(Error::Device { what: "NVRTC", detail: "a thread failed".into() });
        compiling.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
    });
    let made = made.into_iter().collect::<Result<Vec<_>>>()?;
    if let Some(folder) = &folder {
        // A cache that cannot be written costs seconds at the next start, nothing else.
        let _ = store(folder, units.iter().map(|(name, _)| *name).zip(&made));
    }
    Ok(made)
}

/// The compiler's version: other versions make other code.
fn version() -> Result<String> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two integers to be written.
    let status = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    status.result().map_err(|e| error("version", &e.to_string()))?;
    Ok(format!("NVRTC {major}.{minor}"))
}

fn error(what: &str, detail: &str) -> Error {
    Error::Device { what: "NVRTC", detail: format!("{what}: {detail}") }
}

/// `$NANOCHAT_CACHE`, or the user's cache folder.
fn cache() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let user = || of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache")));
    of("NANOCHAT_CACHE").or_else(|| user().map(|c| c.join("nanochat"))).map(|c| c.join("kernels"))
}

/// Writes all, then gives the folder its name.
fn store<'a>(
    folder: &Path,
    files: impl Iterator<Item = (&'static str, &'a Vec<u8>)>,
) -> std::io::Result<()> {
    let beside = folder.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&beside)?;
    for (name, bytes) in files {
        std::fs::write(beside.join(name), bytes)?;
    }
    std::fs::rename(&beside, folder).or_else(|_| std::fs::remove_dir_all(&beside))
}

fn compile(name: &str, text: &str, target: &str) -> Result<Vec<u8>> {
    let text = CString::new(text).map_err(|e| error(name, &e.to_string()))?;
    let c_name = CString::new(name).map_err(|e| error(name, &e.to_string()))?;
    let failed = |e: nvrtc::NvrtcError| error(name, &e.to_string());
    let program = nvrtc::create_program(&text, Some(&c_name)).map_err(failed)?;
    let options: Vec<&str> = source::options().chain([target]).collect();
    // SAFETY: the program was made above and is destroyed below; the text outlives it.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options);
        if compiled.is_err() {
            let log = nvrtc::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
            let log = String::from_utf8_lossy(&log).into_owned();
            let _ = nvrtc::destroy_program(program);
            return Err(error(name, &log));
        }
        let mut len = 0;
        sys::nvrtcGetCUBINSize(program, &raw mut len).result().map_err(failed)?;
        let mut cubin = vec![0u8; len];
        sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result().map_err(failed)?;
        nvrtc::destroy_program(program).map_err(failed)?;
        Ok(cubin)
    }
}
