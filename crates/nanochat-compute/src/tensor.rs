//! Typed views of device memory: what every operation takes.
//!
//! A [`Tensor`] is a cheap handle (start, length, element type) into memory that several handles may
//! share, as pointers into one arena do. Handles stay on the thread that made them. Operations turn
//! handles into slices for the time of one call, after checking that nothing written overlaps
//! anything else.

use std::fs::File;
use std::ops::Range;
use std::rc::Rc;

use crate::cuda::driver::Driver;
use crate::map::Map;
pub use crate::memory::ALIGN;
use crate::memory::Zeroed;
use crate::{Error, Result};

/// Element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// The upper half of an f32: what keys and values are stored in.
    BF16,
    /// 32-bit signed integer (token ids; -1 = ignore).
    I32,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::BF16 => 2,
        }
    }

    /// Name as in messages and files.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
        }
    }
}

/// What handles refer to.
enum Memory {
    /// Zeroed memory of the host, aligned to [`ALIGN`].
    Own(Zeroed),
    /// A file, aligned to its elements, never written.
    Mapped(Map),
    /// Memory of another device, which the host reaches by copies only.
    Device(DeviceMemory),
}

/// Memory of a device that is not the host; given back when it goes.
pub(crate) struct DeviceMemory {
    pub driver: Rc<dyn Driver>,
    pub at: u64,
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.driver.free(self.at);
    }
}

impl Memory {
    fn new(bytes: usize) -> Result<Self> {
        Zeroed::new(bytes).map(Self::Own).ok_or(Error::Memory { bytes })
    }

    /// Address of the first byte, in the memory's own space.
    fn start(&self) -> usize {
        match self {
            Self::Own(memory) => memory.start() as usize,
            Self::Mapped(map) => map.start() as usize,
            Self::Device(memory) => memory.at as usize,
        }
    }
}

/// A typed range of device memory.
#[derive(Clone)]
pub struct Tensor {
    memory: Rc<Memory>,
    /// First element, counted in elements of `dtype`.
    offset: usize,
    len: usize,
    dtype: DType,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} x {}, at {})", self.len, self.dtype.name(), self.offset)
    }
}

impl Tensor {
    /// New zeroed host memory of `len` elements.
    ///
    /// Errors: [`Error::Memory`].
    pub fn zeros(len: usize, dtype: DType) -> Result<Self> {
        let bytes = len.checked_mul(dtype.size()).ok_or(Error::Memory { bytes: usize::MAX })?;
        Ok(Self { memory: Rc::new(Memory::new(bytes)?), offset: 0, len, dtype })
    }

    /// New host memory that holds `values`.
    pub fn from_f32(values: &[f32]) -> Result<Self> {
        let t = Self::zeros(values.len(), DType::F32)?;
        t.write(values)?;
        Ok(t)
    }

    /// New host memory that holds `values`.
    pub fn from_i32(values: &[i32]) -> Result<Self> {
        let t = Self::zeros(values.len(), DType::I32)?;
        t.write(values)?;
        Ok(t)
    }

    /// `len` elements that lie in `file` from byte `start` on, without a copy: each page is read from
    /// the disk when it is first touched. They can be read only: an operation that would write them is
    /// [`Error::ReadOnly`].
    ///
    /// `None` where they cannot be used as they lie (no such bytes, an odd address, a file system or a
    /// system that does not map files, other byte order): then read them. The file may lose its name;
    /// it must not be changed in place: another program that overwrites it changes the values, and one
    /// that cuts it ends this process at the next touch of what is gone.
    pub fn map(file: &File, start: u64, len: usize, dtype: DType) -> Option<Self> {
        let bytes = len.checked_mul(dtype.size())?;
        if cfg!(target_endian = "big") || !start.is_multiple_of(dtype.size() as u64) {
            return None;
        }
        let map = Map::new(file, start, bytes)?;
        let is_aligned = (map.start() as usize).is_multiple_of(dtype.size());
        let memory = Rc::new(Memory::Mapped(map));
        is_aligned.then_some(Self { memory, offset: 0, len, dtype })
    }

    /// True when the elements lie in a file and can only be read.
    pub fn is_mapped(&self) -> bool {
        matches!(*self.memory, Memory::Mapped(_))
    }

    /// New host memory that holds `values`, the bits of bf16.
    pub fn from_bf16(values: &[u16]) -> Result<Self> {
        let t = Self::zeros(values.len(), DType::BF16)?;
        t.write(values)?;
        Ok(t)
    }

    /// Where the first element lies, in the space of its memory: what tells two tensors apart.
    pub fn address(&self) -> u64 {
        self.byte_range().start as u64
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a view of nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the view.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }

    /// The elements `range` of this view, sharing its memory.
    ///
    /// Panics when the range leaves the view: shapes are settled when a model is planned.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} leaves {self:?}");
        Self { offset: self.offset + range.start, len: range.end - range.start, ..self.clone() }
    }

    /// This view, read as other elements of the same size.
    ///
    /// Panics when they have another size.
    pub fn cast(&self, dtype: DType) -> Self {
        assert_eq!(self.dtype.size(), dtype.size(), "{self:?} as {}", dtype.name());
        Self { dtype, ..self.clone() }
    }

    /// `len` elements of `dtype` that begin at byte `start` of this view.
    ///
    /// Panics when they leave the view, or when their address is not a multiple of their size.
    pub fn at_byte(&self, start: usize, len: usize, dtype: DType) -> Self {
        let byte = self.offset * self.dtype.size() + start;
        assert!(byte.is_multiple_of(dtype.size()), "{} at byte {byte}", dtype.name());
        assert!(start + len * dtype.size() <= self.bytes(), "{start} + {len} leaves {self:?}");
        Self { memory: Rc::clone(&self.memory), offset: byte / dtype.size(), len, dtype }
    }

    /// A copy of the values.
    ///
    /// Errors: [`Error::DType`] unless f32.
    pub fn to_vec_f32(&self) -> Result<Vec<f32>> {
        self.read()
    }

    /// A copy of the values.
    ///
    /// Errors: [`Error::DType`] unless i32.
    pub fn to_vec_i32(&self) -> Result<Vec<i32>> {
        self.read()
    }

    /// A copy of the bits.
    ///
    /// Errors: [`Error::DType`] unless bf16.
    pub fn to_vec_bf16(&self) -> Result<Vec<u16>> {
        self.read()
    }

    /// Overwrites the values.
    ///
    /// Errors: [`Error::DType`], [`Error::Shape`].
    pub fn write_f32(&self, values: &[f32]) -> Result<()> {
        self.write(values)
    }

    /// Overwrites the values.
    ///
    /// Errors: [`Error::DType`], [`Error::Shape`].
    pub fn write_i32(&self, values: &[i32]) -> Result<()> {
        self.write(values)
    }

    /// A handle to all of a device's memory.
    pub(crate) fn on_device(memory: DeviceMemory, len: usize, dtype: DType) -> Self {
        Self { memory: Rc::new(Memory::Device(memory)), offset: 0, len, dtype }
    }

    /// The driver of the device where the elements lie, and their address there; none on the host.
    pub(crate) fn device(&self) -> Option<(&Rc<dyn Driver>, u64)> {
        match &*self.memory {
            Memory::Device(memory) => Some((&memory.driver, self.byte_range().start as u64)),
            Memory::Own(_) | Memory::Mapped(_) => None,
        }
    }

    fn read<E: Element>(&self) -> Result<Vec<E>> {
        let Some((driver, at)) = self.device() else {
            let ([], [x]) = borrow("read", [], [self])?;
            return Ok(E::read(x)?.to_vec());
        };
        self.expect_dtype::<E>("read")?;
        let mut values = vec![E::default(); self.len];
        driver.download(bytes_mut(&mut values), at)?;
        Ok(values)
    }

    fn write<E: Element>(&self, values: &[E]) -> Result<()> {
        crate::error::expect_len("write", "values", values.len(), self.len)?;
        let Some((driver, at)) = self.device() else {
            let ([x], []) = borrow("write", [self], [])?;
            E::write(x)?.copy_from_slice(values);
            return Ok(());
        };
        self.expect_dtype::<E>("write")?;
        driver.upload(at, bytes(values))
    }

    /// Overwrites the bits.
    ///
    /// Errors: [`Error::DType`], [`Error::Shape`].
    pub fn write_bf16(&self, values: &[u16]) -> Result<()> {
        self.write(values)
    }

    fn expect_dtype<E: Element>(&self, op: &'static str) -> Result<()> {
        let (have, need) = (self.dtype.name(), E::DTYPE.name());
        if self.dtype == E::DTYPE { Ok(()) } else { Err(Error::DType { op, have, need }) }
    }

    fn byte_range(&self) -> Range<usize> {
        let start = self.memory.start() + self.offset * self.dtype.size();
        start..start + self.bytes()
    }

    pub(crate) fn overlaps(&self, other: &Tensor) -> bool {
        let (a, b) = (self.byte_range(), other.byte_range());
        let same_space = self.device().is_some() == other.device().is_some();
        same_space && !self.is_empty() && !other.is_empty() && a.start < b.end && b.start < a.end
    }
}

/// The bytes of numbers, as they are copied between host and device (both little-endian).
pub(crate) fn bytes<E: Element>(values: &[E]) -> &[u8] {
    // SAFETY: f32, u16 and i32 have no padding, and any address is aligned for bytes.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// As [`bytes`], to be written.
fn bytes_mut<E: Element>(values: &mut [E]) -> &mut [u8] {
    let len = std::mem::size_of_val(values);
    // SAFETY: as in `bytes`; any bytes are a valid f32, u16 or i32.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

/// What a handle gives for the time of one operation: a slice to read.
pub(crate) enum View<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
    I32(&'a [i32]),
}

/// What a handle gives for the time of one operation: a slice to write.
pub(crate) enum ViewMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
    I32(&'a mut [i32]),
}

pub(crate) trait Element: Copy + Default {
    const DTYPE: DType;
    fn read<'a>(view: View<'a>) -> Result<&'a [Self]>;
    fn write<'a>(view: ViewMut<'a>) -> Result<&'a mut [Self]>;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    fn read<'a>(view: View<'a>) -> Result<&'a [f32]> {
        view.f32("read")
    }
    fn write<'a>(view: ViewMut<'a>) -> Result<&'a mut [f32]> {
        view.f32("write")
    }
}

impl Element for i32 {
    const DTYPE: DType = DType::I32;
    fn read<'a>(view: View<'a>) -> Result<&'a [i32]> {
        view.i32("read")
    }
    fn write<'a>(view: ViewMut<'a>) -> Result<&'a mut [i32]> {
        match view {
            ViewMut::I32(x) => Ok(x),
            other => Err(other.is_not("write", DType::I32)),
        }
    }
}

impl Element for u16 {
    const DTYPE: DType = DType::BF16;
    fn read<'a>(view: View<'a>) -> Result<&'a [u16]> {
        match view {
            View::Bf16(x) => Ok(x),
            other => Err(other.is_not("read", DType::BF16)),
        }
    }
    fn write<'a>(view: ViewMut<'a>) -> Result<&'a mut [u16]> {
        match view {
            ViewMut::Bf16(x) => Ok(x),
            other => Err(other.is_not("write", DType::BF16)),
        }
    }
}

impl<'a> View<'a> {
    pub(crate) fn f32(self, op: &'static str) -> Result<&'a [f32]> {
        match self {
            View::F32(x) => Ok(x),
            other => Err(other.is_not(op, DType::F32)),
        }
    }

    pub(crate) fn floats(self, op: &'static str) -> Result<Floats<'a>> {
        match self {
            View::F32(x) => Ok(Floats::F32(x)),
            View::Bf16(x) => Ok(Floats::Bf16(x)),
            View::I32(_) => Err(self.is_not(op, DType::F32)),
        }
    }

    pub(crate) fn i32(self, op: &'static str) -> Result<&'a [i32]> {
        match self {
            View::I32(x) => Ok(x),
            other => Err(other.is_not(op, DType::I32)),
        }
    }

    fn is_not(&self, op: &'static str, need: DType) -> Error {
        let have = match self {
            View::F32(_) => DType::F32,
            View::Bf16(_) => DType::BF16,
            View::I32(_) => DType::I32,
        };
        Error::DType { op, have: have.name(), need: need.name() }
    }
}

impl<'a> ViewMut<'a> {
    pub(crate) fn i32(self, op: &'static str) -> Result<&'a mut [i32]> {
        match self {
            ViewMut::I32(x) => Ok(x),
            other => Err(other.is_not(op, DType::I32)),
        }
    }

    pub(crate) fn f32(self, op: &'static str) -> Result<&'a mut [f32]> {
        match self {
            ViewMut::F32(x) => Ok(x),
            other => Err(other.is_not(op, DType::F32)),
        }
    }

    pub(crate) fn floats(self, op: &'static str) -> Result<FloatsMut<'a>> {
        match self {
            ViewMut::F32(x) => Ok(FloatsMut::F32(x)),
            ViewMut::Bf16(x) => Ok(FloatsMut::Bf16(x)),
            ViewMut::I32(_) => Err(self.is_not(op, DType::F32)),
        }
    }

    fn is_not(&self, op: &'static str, need: DType) -> Error {
        let have = match self {
            ViewMut::F32(_) => DType::F32,
            ViewMut::Bf16(_) => DType::BF16,
            ViewMut::I32(_) => DType::I32,
        };
        Error::DType { op, have: have.name(), need: need.name() }
    }
}

/// Numbers to read, as they are stored.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// The upper halves of f32.
    Bf16(&'a [u16]),
}

impl Floats<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(x) => x.len(),
            Floats::Bf16(x) => x.len(),
        }
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How they are stored.
    pub fn dtype(&self) -> DType {
        match self {
            Floats::F32(_) => DType::F32,
            Floats::Bf16(_) => DType::BF16,
        }
    }

    /// Those of a range, in f32. Panics when the range leaves them.
    pub fn to_f32(&self, range: Range<usize>) -> Vec<f32> {
        match self {
            Floats::F32(x) => x[range].to_vec(),
            Floats::Bf16(x) => {
                x[range].iter().map(|&x| half::bf16::from_bits(x).to_f32()).collect()
            }
        }
    }
}

/// Numbers to write, as they are stored.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// As they are.
    F32(&'a mut [f32]),
    /// Rounded to the nearest bf16, ties to even.
    Bf16(&'a mut [u16]),
}

impl FloatsMut<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            FloatsMut::F32(x) => x.len(),
            FloatsMut::Bf16(x) => x.len(),
        }
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stores `values` from `at` on. Panics when there is no room.
    pub fn store(&mut self, at: usize, values: &[f32]) {
        match self {
            FloatsMut::F32(x) => x[at..][..values.len()].copy_from_slice(values),
            FloatsMut::Bf16(x) => {
                for (to, &value) in x[at..][..values.len()].iter_mut().zip(values) {
                    *to = half::bf16::from_f32(value).to_bits();
                }
            }
        }
    }
}

/// Slices of the handles of one operation: `w` to write, `r` to read.
///
/// Reads may overlap each other. Errors: [`Error::Overlap`] when a write overlaps anything,
/// [`Error::ReadOnly`] when it goes into a mapped file.
/// To be called once an operation, by the operations of this crate only: the slices must be gone
/// before the next call, which holds because each operation borrows, computes and returns.
pub(crate) fn borrow<'a, const W: usize, const R: usize>(
    op: &'static str,
    w: [&'a Tensor; W],
    r: [&'a Tensor; R],
) -> Result<([ViewMut<'a>; W], [View<'a>; R])> {
    if w.iter().chain(&r).any(|t| t.device().is_some()) {
        return Err(Error::Elsewhere { op, place: "on a GPU", backend: "the CPU" });
    }
    for (i, a) in w.iter().enumerate() {
        if w[..i].iter().chain(r.iter()).any(|b| a.overlaps(b)) {
            return Err(Error::Overlap { op });
        }
        if a.is_mapped() {
            return Err(Error::ReadOnly { op });
        }
    }
    let writes = w.map(|t| {
        let start = t.byte_range().start;
        // SAFETY: offset + len lie inside the allocation (`zeros`, `slice`), which is this program's
        // own (mapped ones are refused above), aligned to ALIGN and zero-initialised; any bit pattern
        // is a valid f32, u16 or i32. The view overlaps no other view of this call (checked above), no
        // other call is open (handles are !Send and operations return before the next one starts),
        // and 'a keeps the memory alive.
        unsafe {
            match t.dtype {
                DType::F32 => {
                    ViewMut::F32(std::slice::from_raw_parts_mut(start as *mut f32, t.len))
                }
                DType::BF16 => {
                    ViewMut::Bf16(std::slice::from_raw_parts_mut(start as *mut u16, t.len))
                }
                DType::I32 => {
                    ViewMut::I32(std::slice::from_raw_parts_mut(start as *mut i32, t.len))
                }
            }
        }
    });
    let reads = r.map(|t| {
        let start = t.byte_range().start;
        // SAFETY: as above; reads overlap only reads. A map is as long as `map` made it, aligned to its
        // elements (checked there; all have one size), and its bytes stay as they are (`Map::new`).
        unsafe {
            match t.dtype {
                DType::F32 => View::F32(std::slice::from_raw_parts(start as *const f32, t.len)),
                DType::BF16 => View::Bf16(std::slice::from_raw_parts(start as *const u16, t.len)),
                DType::I32 => View::I32(std::slice::from_raw_parts(start as *const i32, t.len)),
            }
        }
    });
    Ok((writes, reads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_memory() {
        let t = Tensor::from_f32(&[1.0, 2.0, 3.0, 4.0]).expect("four floats");
        t.slice(1..3).write_f32(&[8.0, 9.0]).expect("two floats into two");
        assert_eq!(t.to_vec_f32().expect("f32"), [1.0, 8.0, 9.0, 4.0]);
    }

    #[test]
    fn an_output_that_overlaps_an_input_is_refused() {
        let t = Tensor::from_f32(&[0.0; 8]).expect("eight floats");
        let (a, b, c) = (t.slice(0..5), t.slice(4..8), t.slice(5..8));
        assert!(matches!(borrow("op", [&a], [&b]), Err(Error::Overlap { .. })));
        assert!(matches!(borrow("op", [&a, &b], []), Err(Error::Overlap { .. })));
        assert!(borrow("op", [&a], [&c]).is_ok());
        assert!(borrow("op", [], [&a, &b]).is_ok());
    }

    #[test]
    fn a_mapped_file_is_read_where_it_lies_and_never_written() {
        use std::io::Write;
        let path = std::env::temp_dir().join(format!("nanochat-map-{}", std::process::id()));
        let mut file = File::create_new(&path).expect("a writable folder");
        let bytes: Vec<u8> =
            [7.0f32, 1.5, -2.0, 0.25].iter().flat_map(|x| x.to_le_bytes()).collect();
        file.write_all(&bytes).expect("room for 16 bytes");
        let file = File::open(&path).expect("the file");
        let map = |start, len| Tensor::map(&file, start, len, DType::F32);
        let t = map(4, 3);
        // The name may go; what is mapped stays.
        std::fs::remove_file(&path).expect("the file");
        if !cfg!(unix) {
            assert!(t.is_none());
            return;
        }
        let t = t.expect("a file that can be mapped");
        assert_eq!(t.to_vec_f32().expect("f32"), [1.5, -2.0, 0.25]);
        assert_eq!(t.slice(1..3).to_vec_f32().expect("f32"), [-2.0, 0.25]);
        assert!(matches!(t.write_f32(&[0.0; 3]), Err(Error::ReadOnly { .. })));
        assert!(t.is_mapped() && t.slice(0..1).is_mapped());
        // Past the end, at an odd address, nothing at all, more than there is.
        assert!(map(8, 3).is_none() && map(2, 1).is_none() && map(0, 0).is_none());
        assert!(map(u64::MAX - 3, 1).is_none() && map(0, usize::MAX).is_none());
    }

    #[test]
    fn a_wrong_type_is_an_error_not_a_reinterpretation() {
        let t = Tensor::from_i32(&[1]).expect("one id");
        assert!(matches!(t.to_vec_f32(), Err(Error::DType { .. })));
        let t = Tensor::from_bf16(&[0x3f80]).expect("one bf16");
        assert!(matches!(t.to_vec_f32(), Err(Error::DType { .. })));
        assert!(matches!(t.to_vec_i32(), Err(Error::DType { .. })));
    }

    #[test]
    fn a_bf16_takes_two_bytes_and_is_rounded_to_even() {
        let t = Tensor::zeros(5, DType::BF16).expect("ten bytes");
        let middle = t.slice(1..4);
        let ([x], []) = borrow("op", [&middle], []).expect("one view");
        // 1 + 2^-8 lies between 1 and 1 + 2^-7: to even; a little more goes up.
        x.floats("op").expect("bf16").store(0, &[1.0 + 1.0 / 256.0, 1.0 + 1.01 / 256.0, -2.5]);
        assert_eq!(t.bytes(), 10);
        assert_eq!(t.to_vec_bf16().expect("bf16"), [0, 0x3f80, 0x3f81, 0xc020, 0]);
        let bits = [0x3f80, 0xc020];
        assert_eq!(Floats::Bf16(&bits).to_f32(0..2), [1.0, -2.5]);
    }
}
