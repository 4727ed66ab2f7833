//! Landlock: a second wall around files, by the kernel's own list of what may be opened. It also
//! shuts TCP, abstract Unix sockets and signals to the outside, where the kernel knows how.

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::filesystem::{DEVICES, SCRATCH};
use super::{Missing, Step};
use crate::spec::Spec;

const LAYER: &str = "landlock";

/// Lets this process open what the program needs, and nothing else. Errors: the kernel has none.
pub fn restrict(spec: &Spec) -> Step<()> {
    if version().is_none() {
        return Err(Missing::new(LAYER, "the kernel has none, or it is switched off"));
    }
    let status = rules(spec).map_err(|e| Missing::new(LAYER, e))?;
    if status == RulesetStatus::NotEnforced {
        return Err(Missing::new(LAYER, "not enforced"));
    }
    Ok(())
}

fn rules(spec: &Spec) -> Result<RulesetStatus, RulesetError> {
    let newest = ABI::V6;
    let read = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    // Neither Execute nor any kind of special file.
    let write = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    // The first generation is a must; what came later is taken where it is there.
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?;
    for folder in &spec.python.folders {
        rules = allow(rules, folder, read)?;
    }
    for file in &spec.python.files {
        rules = allow(rules, file, AccessFs::Execute | AccessFs::ReadFile)?;
    }
    for device in DEVICES {
        rules = allow(rules, device, AccessFs::ReadFile | AccessFs::WriteFile)?;
    }
    Ok(allow(rules, SCRATCH, write)?.restrict_self()?.ruleset)
}

fn allow(
    rules: RulesetCreated,
    path: impl AsRef<std::path::Path>,
    access: impl Into<BitFlags<AccessFs>>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(file) => rules.add_rule(PathBeneath::new(file, access.into())),
        // Not there: nothing to allow.
        Err(_) => Ok(rules),
    }
}

/// The version that the kernel offers; None without Landlock.
pub fn version() -> Option<i64> {
    const VERSION_FLAG: u32 = 1;
    // SAFETY: null and zero are what the call asks for when only the version is wanted.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            VERSION_FLAG,
        )
    };
    (version > 0).then_some(version)
}
