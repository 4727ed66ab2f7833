//! seccomp: the system calls that Python needs to compute, and no other.
//!
//! What is not listed fails with EPERM. A call of another architecture kills the process, and so
//! does one of x86-64's second numbering (x32), which would slip past the list.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, sock_filter,
};
use std::collections::BTreeMap;

use super::sys::Exec;
use super::{Missing, Step};

const LAYER: &str = "seccomp";

/// Installs the filters, for good. `python` is the one thing that may still be executed.
pub fn install(python: &Exec) -> Step<()> {
    // C libraries ask for `clone3` first and take `clone` when it is not there; its flags lie in
    // memory, where a filter cannot look.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    let not_there = SeccompAction::Errno(libc::ENOSYS as u32);
    apply(&compile(clone3, SeccompAction::Allow, not_there)?)?;
    #[cfg(target_arch = "x86_64")]
    apply(&no_x32())?;
    let not_allowed = SeccompAction::Errno(libc::EPERM as u32);
    apply(&compile(allowed(python)?, not_allowed, SeccompAction::Allow)?)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Step<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(missing)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(missing)?;
    filter.try_into().map_err(missing)
}

fn apply(program: &[sock_filter]) -> Step<()> {
    apply_filter(program).map_err(missing)
}

fn missing(e: impl std::fmt::Display) -> Missing {
    Missing::new(LAYER, e)
}

/// Kills for a number with x32's bit: `nr >= 0x40000000`.
#[cfg(target_arch = "x86_64")]
fn no_x32() -> [sock_filter; 4] {
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, of offset 0 of `seccomp_data`
    const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let line = |code, jt, k| sock_filter { code, jt, jf: 0, k };
    [
        line(LOAD_NUMBER, 0, 0),
        line(IF_AT_LEAST, 1, 0x4000_0000),
        line(RETURN, 0, libc::SECCOMP_RET_ALLOW),
        line(RETURN, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ]
}

/// The list, with conditions on arguments where a call can do more than compute.
fn allowed(python: &Exec) -> Step<Rules> {
    let mut rules: Rules = PLAIN.iter().map(|&number| (number, vec![])).collect();
    let us = u64::from(std::process::id());
    let one = |c: SeccompCondition| SeccompRule::new(vec![c]).map_err(missing);
    let any = |argument: u8, values: &[u64]| {
        values.iter().map(|&v| one(equal(argument, v)?)).collect::<Step<Vec<_>>>()
    };
    // Threads, not processes.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![one(masked(0, thread, thread)?)?]);
    // Decided by the first filter.
    rules.insert(libc::SYS_clone3, vec![]);
    // Once: the address is that of the path in the launcher, which is gone after it.
    rules.insert(libc::SYS_execve, vec![one(pointer(0, python.path_address())?)?]);
    // Signals to itself.
    rules.insert(libc::SYS_kill, any(0, &[us])?);
    rules.insert(libc::SYS_tgkill, any(0, &[us])?);
    // New files and folders without setuid and setgid. Where nothing is made, C libraries pass 0.
    for (number, mode) in WITH_MODE {
        rules.insert(*number, vec![one(masked(*mode, 0o6000, 0)?)?]);
    }
    // Reading limits, not setting them.
    rules.insert(libc::SYS_prlimit64, vec![one(pointer(2, 0)?)?]);
    // Is it a terminal; how much is there to read; close on exec. Nothing else of devices.
    let requests = [libc::TCGETS, libc::FIONREAD, libc::FIOCLEX, libc::FIONCLEX, libc::FIONBIO];
    rules.insert(libc::SYS_ioctl, any(1, &requests)?);
    let commands = [
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_GETLK,
        libc::F_SETLK,
        libc::F_SETLKW,
    ];
    rules.insert(libc::SYS_fcntl, any(1, &commands.map(|c| c as u64))?);
    // Names of threads, and of stretches of memory.
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];
    rules.insert(libc::SYS_prctl, any(0, &names.map(|n| n as u64))?);
    Ok(rules)
}

/// Argument number `argument`, an integer, equals `value`.
fn equal(argument: u8, value: u64) -> Step<SeccompCondition> {
    let (length, op) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
    SeccompCondition::new(argument, length, op, value & u64::from(u32::MAX)).map_err(missing)
}

/// Argument number `argument`, an address, equals `value`.
fn pointer(argument: u8, value: u64) -> Step<SeccompCondition> {
    let (length, op) = (SeccompCmpArgLen::Qword, SeccompCmpOp::Eq);
    SeccompCondition::new(argument, length, op, value).map_err(missing)
}

/// Argument number `argument` has, of the bits of `mask`, exactly those of `value`.
fn masked(argument: u8, mask: u64, value: u64) -> Step<SeccompCondition> {
    let (length, op) = (SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask));
    SeccompCondition::new(argument, length, op, value).map_err(missing)
}

/// Calls that make files, and which argument is the mode.
const WITH_MODE: &[(i64, u8)] = &[
    (libc::SYS_openat, 3),
    (libc::SYS_mkdirat, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, 1),
];

/// Calls that only compute, or only reach what the file rules and the process's own files permit.
#[rustfmt::skip]
const PLAIN: &[i64] = &[
    // Files that are open.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64,
    libc::SYS_pwrite64, libc::SYS_lseek, libc::SYS_close, libc::SYS_close_range, libc::SYS_fstat,
    libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_fsync, libc::SYS_fdatasync,
    libc::SYS_ftruncate, libc::SYS_fadvise64, libc::SYS_flock, libc::SYS_getdents64,
    libc::SYS_fstatfs, libc::SYS_copy_file_range, libc::SYS_sendfile,
    // Files by name.
    libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_faccessat,
    libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_unlinkat,
    libc::SYS_renameat2, libc::SYS_truncate, libc::SYS_statfs, libc::SYS_getcwd, libc::SYS_chdir,
    libc::SYS_fchdir, libc::SYS_umask, libc::SYS_utimensat,
    // Waiting.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait, libc::SYS_eventfd2, libc::SYS_nanosleep, libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall, libc::SYS_wait4, libc::SYS_waitid,
    // Memory.
    libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise,
    libc::SYS_brk, libc::SYS_membarrier, libc::SYS_mincore,
    // Threads and signals of its own.
    libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_set_robust_list, libc::SYS_get_robust_list,
    libc::SYS_set_tid_address, libc::SYS_rseq, libc::SYS_sched_yield, libc::SYS_sched_getaffinity,
    libc::SYS_getcpu, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack, libc::SYS_setitimer, libc::SYS_getitimer, libc::SYS_exit,
    libc::SYS_exit_group,
    // Who and when.
    libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getppid, libc::SYS_getuid, libc::SYS_geteuid,
    libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getresuid, libc::SYS_getresgid,
    libc::SYS_getgroups, libc::SYS_getpgid, libc::SYS_getsid, libc::SYS_uname, libc::SYS_sysinfo,
    libc::SYS_times, libc::SYS_getrusage, libc::SYS_gettimeofday, libc::SYS_clock_gettime,
    libc::SYS_clock_getres, libc::SYS_getrandom,
    // The older names of x86-64.
    #[cfg(target_arch = "x86_64")] libc::SYS_stat,
    #[cfg(target_arch = "x86_64")] libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")] libc::SYS_access,
    #[cfg(target_arch = "x86_64")] libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")] libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_rename,
    #[cfg(target_arch = "x86_64")] libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")] libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")] libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")] libc::SYS_poll,
    #[cfg(target_arch = "x86_64")] libc::SYS_select,
    #[cfg(target_arch = "x86_64")] libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")] libc::SYS_alarm,
    #[cfg(target_arch = "x86_64")] libc::SYS_pause,
    #[cfg(target_arch = "x86_64")] libc::SYS_time,
    #[cfg(target_arch = "x86_64")] libc::SYS_getpgrp,
    #[cfg(target_arch = "x86_64")] libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")] libc::SYS_arch_prctl,
];
