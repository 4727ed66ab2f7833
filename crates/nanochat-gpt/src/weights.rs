//! Parameters to and from `.safetensors` files, by the names of the table.
//!
//! The memory of a run is planned, so neither way holds even one tensor whole: values pass through
//! a buffer of 256 KiB. A model that is only read needs no copy at all: `map` leaves its parameters
//! where they lie in the file.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nanochat_compute::{DType, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};

use crate::nano::table::{Role, Row, Table};
use crate::{Error, GptConfig, Nano, Result};

/// Bytes that are read or written at a time; a multiple of every element's size.
const PIECE: usize = 1 << 18;

/// Longest header that is read: the limit of the safetensors crate, which no model comes near.
const MAX_HEADER: u64 = 100_000_000;

/// A named tensor to be written.
pub struct Named {
    /// Name in the file.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values: a handle, whose memory is read when the file is written.
    pub data: Tensor,
}

/// All rows of `all` (parameters or what is laid out as they are) as named tensors.
pub fn named(table: &Table, all: &Tensor) -> Vec<Named> {
    let one = |row: &Row| {
        let data = all.slice(row.offset..row.offset + row.len());
        Named { name: row.name.clone(), shape: row.shape.clone(), data }
    };
    table.rows().iter().map(one).collect()
}

/// Writes tensors to `out` as a `.safetensors` file; `file` is its name in messages.
///
/// The bytes are those of [`safetensors::serialize`]. Errors: [`Error::File`] unless every tensor
/// fits its shape, [`Error::Io`].
pub fn write(file: &Path, out: &mut dyn Write, tensors: &[Named]) -> Result<()> {
    let mut sorted: Vec<&Named> = tensors.iter().collect();
    sorted.sort_by_key(|t| (std::cmp::Reverse(dtype(t)), &t.name));
    let header = header(&sorted).map_err(|e| Error::File {
        file: file.into(),
        detail: format!("cannot be written ({e})"),
    })?;
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(io(file));
    put(&(header.len() as u64).to_le_bytes())?;
    put(&header)?;
    let mut bytes = Vec::new();
    for t in sorted {
        for at in (0..t.data.len()).step_by(PIECE / t.data.dtype().size()) {
            let end = t.data.len().min(at + PIECE / t.data.dtype().size());
            to_bytes(&t.data.slice(at..end), &mut bytes)?;
            put(&bytes)?;
        }
    }
    Ok(())
}

fn dtype(t: &Named) -> Dtype {
    match t.data.dtype() {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::I32 => Dtype::I32,
    }
}

/// The header of a file that holds `tensors` in this order, filled up to a multiple of 8 bytes.
fn header(tensors: &[&Named]) -> std::result::Result<Vec<u8>, SafeTensorError> {
    let mut end = 0;
    let info = |t: &&Named| {
        let start = end;
        end += t.data.bytes();
        let info =
            TensorInfo { dtype: dtype(t), shape: t.shape.clone(), data_offsets: (start, end) };
        (t.name.clone(), info)
    };
    let header = Metadata::new(None, tensors.iter().map(info).collect())?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// Replaces `bytes` by the values, little-endian.
fn to_bytes(values: &Tensor, bytes: &mut Vec<u8>) -> Result<()> {
    bytes.resize(values.bytes(), 0);
    match values.dtype() {
        DType::F32 => {
            let values = values.to_vec_f32()?;
            bytes
                .chunks_exact_mut(4)
                .zip(values)
                .for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
        }
        DType::BF16 => {
            let values = values.to_vec_bf16()?;
            let halves = bytes.chunks_exact_mut(2);
            halves.zip(values).for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
        }
        DType::I32 => {
            let values = values.to_vec_i32()?;
            bytes
                .chunks_exact_mut(4)
                .zip(values)
                .for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
        }
    }
    Ok(())
}

/// A `.safetensors` file whose header was read and checked; its tensors are read one by one.
pub struct Reader {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the tensors begin, bytes.
    start: u64,
}

impl Reader {
    /// Reads the header and holds it against the file's length.
    ///
    /// Errors: [`Error::File`] when the file is cut or its header does not describe it, [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let bad = |e| Error::File {
            file: path.into(),
            detail: format!("not a whole safetensors file ({e})"),
        };
        let mut file = File::open(path).map_err(io(path))?;
        let len = file.metadata().map_err(io(path))?.len();
        if len < 8 {
            return Err(bad(SafeTensorError::HeaderTooSmall));
        }
        let mut word = [0; 8];
        file.read_exact(&mut word).map_err(io(path))?;
        let n = u64::from_le_bytes(word);
        if n > MAX_HEADER {
            return Err(bad(SafeTensorError::HeaderTooLarge));
        }
        // Before memory is taken for what a damaged file claims.
        if n > len - 8 {
            return Err(bad(SafeTensorError::InvalidHeaderLength));
        }
        let mut text = vec![0; n as usize];
        file.read_exact(&mut text).map_err(io(path))?;
        let header = parse(&text).map_err(bad)?;
        if header.data_len() as u64 != len - 8 - n {
            return Err(bad(SafeTensorError::MetadataIncompleteBuffer));
        }
        Ok(Self { path: path.into(), file, header, start: 8 + n })
    }

    /// Names of the tensors, in the order of the file.
    pub(crate) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Shape of a tensor.
    ///
    /// Errors: [`Error::Tensor`] when it is missing.
    pub(crate) fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.info(name)?.shape)
    }

    /// Fills `to` (f32) with a tensor's values; bf16 and f16 are widened.
    ///
    /// Errors: [`Error::Tensor`] when it is missing, of another length or type.
    pub fn read(&self, name: &str, to: &Tensor) -> Result<()> {
        let len: usize = self.shape(name)?.iter().product();
        if len != to.len() {
            return Err(self.bad(name, format!("{len} values, should be {}", to.len())));
        }
        self.pieces(name, |at, values| Ok(to.slice(at..at + values.len()).write_f32(values)?))
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.info(name).ok_or_else(|| self.bad(name, "is missing".into()))
    }

    fn bad(&self, name: &str, detail: String) -> Error {
        Error::Tensor { file: self.path.clone(), name: name.into(), detail }
    }

    /// Calls `each` with the values of a tensor, piece after piece, and the place of their first.
    fn pieces(&self, name: &str, mut each: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let info = self.info(name)?;
        let (from, to) = info.data_offsets;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.start + from as u64)).map_err(io(&self.path))?;
        let mut bytes = vec![0; PIECE.min(to - from)];
        let mut at = 0;
        for start in (from..to).step_by(PIECE) {
            let piece = &mut bytes[..PIECE.min(to - start)];
            file.read_exact(piece).map_err(io(&self.path))?;
            let values = to_f32(info.dtype, piece).ok_or_else(|| {
                self.bad(name, format!("type {:?}: f32, bf16 and f16 are read", info.dtype))
            })?;
            each(at, &values)?;
            at += values.len();
        }
        Ok(())
    }
}

fn parse(header: &[u8]) -> std::result::Result<Metadata, SafeTensorError> {
    let text = std::str::from_utf8(header).map_err(SafeTensorError::InvalidHeader)?;
    serde_json::from_str(text).map_err(SafeTensorError::InvalidHeaderDeserialization)
}

/// The values as f32, or `None` of a type that is not read.
fn to_f32(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    let words = |f: fn([u8; 2]) -> f32| data.chunks_exact(2).map(|b| f([b[0], b[1]])).collect();
    match dtype {
        Dtype::F32 => {
            let word = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            Some(data.chunks_exact(4).map(word).collect())
        }
        Dtype::BF16 => Some(words(|b| half::bf16::from_le_bytes(b).to_f32())),
        Dtype::F16 => Some(words(|b| half::f16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

/// Fills a model's parameters from a file's tensors.
///
/// `rename` gives the file's name of a row. A table of the vocabulary without padding is filled up
/// with zeros. Errors: [`Error::Tensor`] naming what is missing, of another shape, not finite, or
/// unknown.
pub(crate) fn load(file: &Reader, model: &Nano, rename: &dyn Fn(&Row) -> String) -> Result<()> {
    let mut known = HashSet::new();
    for row in model.table().rows() {
        let name = rename(row);
        let (have, want) = (file.shape(&name)?, row.shape.as_slice());
        let unpadded = matches!(row.role, Role::Wte | Role::LmHead | Role::ValueEmbed(_))
            && have == [model.config().vocab_size, want[1]];
        if have != want && !unpadded {
            return Err(file.bad(&name, format!("shape {have:?}, the config needs {want:?}")));
        }
        let to = model.table().view(model.params(), row.role);
        file.pieces(&name, |at, values| {
            finite(file, &name, at, values)?;
            Ok(to.slice(at..at + values.len()).write_f32(values)?)
        })?;
        let padding = to.slice(have.iter().product()..to.len());
        padding.write_f32(&vec![0.0; padding.len()])?;
        known.insert(name);
    }
    match file.names().iter().find(|n| !known.contains(*n)) {
        Some(name) => Err(file.bad(name, "is not a parameter of this model".into())),
        None => Ok(()),
    }
}

/// A model whose parameters stay in the file, read only: a page is read from the disk when it is first
/// touched, so a prompt reads a few rows of the tables and not all of them. Finite or not is for
/// [`check_finite`] to say.
///
/// `None` when they cannot stay: another type than f32, a table without its padding, a file that cannot
/// be mapped ([`Tensor::map`]), a name missing or unknown. [`load`] then converts them, or says what is
/// wrong.
pub(crate) fn map(file: &Reader, config: &GptConfig) -> Option<Nano> {
    let table = Table::new(config);
    let place = |row: &Row| {
        let info = file.header.info(&row.name)?;
        let (start, end) = info.data_offsets;
        let lies_so = info.dtype == Dtype::F32
            && info.shape == row.shape
            && start % 4 == 0
            && end - start == 4 * row.len();
        lies_so.then_some(start / 4)
    };
    let offsets = table.rows().iter().map(place).collect::<Option<Vec<_>>>()?;
    if offsets.len() != file.names().len() {
        return None;
    }
    let len = file.header.data_len() / 4;
    let params = Tensor::map(&file.file, file.start, len, DType::F32)?;
    Some(Nano::over(config.clone(), table.placed(&offsets, len), params))
}

/// Errors: [`Error::Tensor`] naming the first parameter of a model of [`map`] that is not finite.
pub(crate) fn check_finite(file: &Reader, model: &Nano) -> Result<()> {
    for row in model.table().rows() {
        let all = model.params().slice(row.offset..row.offset + row.len());
        for at in (0..all.len()).step_by(PIECE / 4) {
            let values = all.slice(at..all.len().min(at + PIECE / 4)).to_vec_f32()?;
            finite(file, &row.name, at, &values)?;
        }
    }
    Ok(())
}

/// Errors: [`Error::Tensor`] unless the values, of which the first is element `at`, are finite.
fn finite(file: &Reader, name: &str, at: usize, values: &[f32]) -> Result<()> {
    // All of them in lanes; which one only when there is one.
    if values.iter().fold(true, |all, x| all & x.is_finite()) {
        return Ok(());
    }
    let n = values.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(file.bad(name, format!("element {} is {}", at + n, values[n])))
}

/// Reads a whole file: JSON, and what a loader wrote.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(io(file))
}

/// Names the file that an error of the system belongs to.
pub(crate) fn io(file: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io { file: file.into(), source }
}
