//! Matrix products by cuBLASLt: a plan for each shape, made once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;

use cudarc::cublaslt::{result as lt, sys as lt_sys};
use cudarc::driver::result as cu;
use cudarc::driver::sys as cu_sys;

use super::driver_error;
use crate::cuda::driver::Product;
use crate::ops::Layout;
use crate::{DType, Error, Result};

/// Bytes that cuBLASLt may work in: what NVIDIA recommends for Hopper is 32 MiB.
const WORKSPACE: usize = 64 << 20;

/// The library's handle, and the plans made so far.
pub(super) struct Products {
    handle: lt_sys::cublasLtHandle_t,
    workspace: u64,
    plans: RefCell<HashMap<Shape, Plan>>,
}

/// What a product's plan depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    layout: u8,
    adds: bool,
    operands: DType,
    result: DType,
    aligned: bool,
    batch: usize,
}

/// cuBLASLt's descriptions of a product, and the algorithm for it.
struct Plan {
    product: lt_sys::cublasLtMatmulDesc_t,
    /// Of the first operand, the second, the result.
    matrices: [lt_sys::cublasLtMatrixLayout_t; 3],
    algorithm: lt_sys::cublasLtMatmulAlgo_t,
}

impl Products {
    /// Of the current GPU.
    pub(super) fn open() -> Result<Self> {
        let handle = lt::create_handle().map_err(product_error)?;
        // SAFETY: freed when the products are closed.
        let workspace = unsafe { cu::malloc_sync(WORKSPACE) }.map_err(driver_error)?;
        Ok(Self { handle, workspace, plans: RefCell::default() })
    }

    /// Queues a product on a stream.
    ///
    /// # Safety
    /// As [`super::Driver::product`]; the stream is one of the GPU that this was opened for.
    pub(super) unsafe fn queue(&self, p: &Product, stream: cu_sys::CUstream) -> Result<()> {
        let s = &p.shape;
        let aligned = [p.a.at, p.b.at, p.c, p.d.at].iter().all(|at| at % 16 == 0);
        let layout = match s.layout {
            Layout::Nt => 0,
            Layout::Nn => 1,
            Layout::Tn => 2,
        };
        let (operands, result) = (p.a.dtype, p.d.dtype);
        let (m, n, k, adds) = (s.m, s.n, s.k, s.beta != 0.0);
        let key = Shape { m, n, k, layout, adds, operands, result, aligned, batch: p.batch };
        let mut plans = self.plans.borrow_mut();
        let plan = match plans.entry(key) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(slot) => slot.insert(self.plan(key)?),
        };
        let [first, second, d] = plan.matrices;
        // SAFETY: the caller's promise for the matrices; the descriptions are the plan's own, the
        // scalars are read by the call.
        unsafe {
            lt::matmul(
                self.handle,
                plan.product,
                (&raw const p.alpha).cast(),
                (&raw const s.beta).cast(),
                p.b.at as *const c_void,
                first,
                p.a.at as *const c_void,
                second,
                p.c as *const c_void,
                d,
                p.d.at as *mut c_void,
                d,
                &raw const plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream as lt_sys::cudaStream_t,
            )
        }
        .map_err(|e| Error::Device {
            what: "cuBLASLt",
            detail: format!("{m} x {n} x {k} {:?}: {:?}", s.layout, e.0),
        })
    }

    /// Row-major `D = A B` is column-major `Dᵀ = Bᵀ Aᵀ`: B comes first.
    fn plan(&self, key: Shape) -> Result<Plan> {
        let Shape { m, n, k, .. } = key;
        let (tn, nt) = (key.layout == 2, key.layout == 0);
        let types = |dtype| match dtype {
            DType::BF16 => lt_sys::cudaDataType::CUDA_R_16BF,
            _ => lt_sys::cudaDataType::CUDA_R_32F,
        };
        let (operand, result) = (types(key.operands), types(key.result));
        let layout = |t, rows: usize, columns: usize| {
            let ld = rows as i64;
            let made = lt::create_matrix_layout(t, rows as u64, columns as u64, ld);
            let made = made.map_err(product_error)?;
            if key.batch > 1 {
                batched(made, key.batch, rows * columns)?;
            }
            Ok(made)
        };
        let first = if nt { layout(operand, k, n)? } else { layout(operand, n, k)? };
        let second = if tn { layout(operand, m, k)? } else { layout(operand, k, m)? };
        let d = layout(result, n, m)?;
        let product = lt::create_matmul_desc(
            lt_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            lt_sys::cudaDataType::CUDA_R_32F,
        )
        .map_err(product_error)?;
        let preference = lt::create_matmul_pref().map_err(product_error)?;
        let set = |attribute, transposed: bool| {
            let op: i32 = if transposed { 1 } else { 0 };
            // SAFETY: the attribute is a cublasOperation_t, 4 bytes, copied by the call.
            unsafe { lt::set_matmul_desc_attribute(product, attribute, (&raw const op).cast(), 4) }
                .map_err(product_error)
        };
        use lt_sys::cublasLtMatmulDescAttributes_t as Attribute;
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, nt)?;
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, tn)?;
        use lt_sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let align = |dtype: DType| if key.aligned { 16 } else { dtype.size() as u32 };
        let (of_operands, of_result) = (align(key.operands), align(key.result));
        let alignments = [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_operands),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_operands),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_result),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_result),
        ];
        // SAFETY: the attributes are a size_t and four uint32_t, copied by the calls; the descriptions
        // were made above.
        let heuristic = unsafe {
            let bytes = WORKSPACE;
            let most = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            lt::set_matmul_pref_attribute(preference, most, (&raw const bytes).cast(), 8)
                .map_err(product_error)?;
            for (attribute, align) in &alignments {
                let (attribute, value) = (*attribute, std::ptr::from_ref(align).cast());
                lt::set_matmul_pref_attribute(preference, attribute, value, 4)
                    .map_err(product_error)?;
            }
            let found = lt::get_matmul_algo_heuristic(
                self.handle,
                product,
                first,
                second,
                d,
                d,
                preference,
            );
            lt::destroy_matmul_pref(preference).map_err(product_error)?;
            found.map_err(|e| {
                let detail =
                    format!("no algorithm for {m} x {n} x {k} ({:?}): {:?}", key.operands, e.0);
                Error::Device { what: "cuBLASLt", detail }
            })?
        };
        Ok(Plan { product, matrices: [first, second, d], algorithm: heuristic.algo })
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        // SAFETY: the GPU that owns this has waited for its work; nobody has the workspace any more.
        let _ = unsafe { cu::free_sync(self.workspace) };
    }
}

/// Makes a description that of `count` matrices of `len` elements, one after the other.
fn batched(matrix: lt_sys::cublasLtMatrixLayout_t, count: usize, len: usize) -> Result<()> {
    use lt_sys::cublasLtMatrixLayoutAttribute_t as Attribute;
    let (count, len) = (count as i32, len as i64);
    // SAFETY: the attributes are an int32_t and an int64_t, copied by the calls.
    unsafe {
        let attribute = Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
        lt::set_matrix_layout_attribute(matrix, attribute, (&raw const count).cast(), 4)
            .map_err(product_error)?;
        let attribute = Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
        lt::set_matrix_layout_attribute(matrix, attribute, (&raw const len).cast(), 8)
            .map_err(product_error)
    }
}

fn product_error(e: lt::CublasError) -> Error {
    Error::Device { what: "cuBLASLt", detail: format!("{:?}", e.0) }
}
