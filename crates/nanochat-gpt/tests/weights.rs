//! Tensors longer than a piece: written as the safetensors crate writes them, read back to the bit,
//! and a header is believed no more than that crate would.

mod tiny;

use std::fs;

use nanochat_compute::reference::Reference;
use nanochat_compute::{DType, Tensor};
use nanochat_gpt::weights::{self, Named, Reader};
use nanochat_gpt::{Generation, GptConfig, Nano, RawConfig, checkpoint};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tiny::{Draws, bits, copies, dir, save, small, write_tensors};

/// Two pieces and a bit; an exact piece; nothing; one value; ids.
fn tensors() -> Vec<Named> {
    let mut draws = Draws(3);
    let mut one = |name: &str, shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| draws.next()).collect();
        let data = Tensor::from_f32(&values).expect("a small tensor");
        Named { name: name.into(), shape: shape.into(), data }
    };
    let mut all = vec![
        one("z", &[3, 50_001]),
        one("a", &[1 << 16]),
        one("nothing", &[0, 7]),
        one("m", &[]),
        one("ids", &[70_000]),
    ];
    all[4].data = all[4].data.cast(DType::I32);
    all
}

/// The same file by the safetensors crate.
fn golden(tensors: &[Named]) -> Vec<u8> {
    let bytes = |t: &Named| -> Vec<u8> {
        let words = t.data.cast(DType::F32).to_vec_f32().expect("f32");
        words.into_iter().flat_map(f32::to_le_bytes).collect()
    };
    let data: Vec<Vec<u8>> = tensors.iter().map(bytes).collect();
    let view = |(t, data)| {
        let t: &Named = t;
        let dtype = if t.data.dtype() == DType::F32 { Dtype::F32 } else { Dtype::I32 };
        let view = TensorView::new(dtype, t.shape.clone(), data).expect("bytes that fit");
        (t.name.clone(), view)
    };
    let views = tensors.iter().zip(data.iter().map(Vec::as_slice)).map(view);
    safetensors::serialize(views, None).expect("tensors")
}

#[test]
fn a_file_has_the_bytes_of_the_safetensors_crate() {
    let mut bytes = Vec::new();
    weights::write("x".as_ref(), &mut bytes, &tensors()).expect("tensors that fit");
    assert!(bytes == golden(&tensors()));
    weights::write("x".as_ref(), &mut Vec::new(), &[]).expect("a file of nothing");
    let dir = dir();
    for generation in tiny::GENERATIONS {
        let model = small(generation);
        let at = save(dir.path(), &model, 1);
        let bytes = fs::read(at.join("model.safetensors")).expect("a file of the step");
        assert!(bytes == golden(&copies(&model)), "{generation:?}");
    }
}

#[test]
fn a_tensor_that_does_not_fit_its_shape_is_not_written() {
    let data = Tensor::zeros(6, DType::F32).expect("six values");
    for shape in [vec![2, 2], vec![usize::MAX, 2], vec![7]] {
        let bad = [Named { name: "bad".into(), shape, data: data.clone() }];
        let mut out = Vec::new();
        let error = weights::write("there".as_ref(), &mut out, &bad).expect_err("another shape");
        assert!(error.to_string().contains("there: cannot be written"), "{error}");
        assert!(out.is_empty());
    }
}

#[test]
fn tensors_are_read_by_name_in_any_order() {
    let dir = dir();
    let file = dir.path().join("x.safetensors");
    let all = tensors();
    write_tensors(&file, &all);
    let reader = Reader::open(&file).expect("its own file");
    for t in all.iter().rev().filter(|t| t.data.dtype() == DType::F32) {
        let to = Tensor::from_f32(&vec![7.0; t.data.len()]).expect("a small tensor");
        reader.read(&t.name, &to).expect("a tensor of the file");
        let values = |t: &Tensor| bits(&t.to_vec_f32().expect("f32"));
        assert!(values(&to) == values(&t.data), "{}", t.name);
    }
    let of = |len| Tensor::zeros(len, DType::F32).expect("a small tensor");
    for (name, len, part) in [
        ("absent", 1, "is missing"),
        ("a", 65_535, "65536 values, should be 65535"),
        ("a", 65_537, "should be 65537"),
        ("ids", 70_000, "I32"),
    ] {
        let error = reader.read(name, &of(len)).expect_err("another tensor").to_string();
        assert!([name, part, "x.safetensors"].iter().all(|p| error.contains(p)), "{error}");
    }
}

#[test]
fn half_precision_is_widened_past_the_first_piece() {
    let dir = dir();
    let file = dir.path().join("x.safetensors");
    // Whole numbers up to 255 have few enough bits for either type.
    let want: Vec<f32> = (0..300_001).map(|i| (i % 256) as f32).collect();
    let bf16 = want.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let f16 = want.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let types: [(Dtype, Vec<u8>); 2] = [(Dtype::BF16, bf16), (Dtype::F16, f16)];
    for (dtype, data) in types {
        let view = TensorView::new(dtype, vec![want.len()], &data).expect("bytes that fit");
        let bytes = safetensors::serialize([("x", view)], None).expect("one tensor");
        fs::write(&file, bytes).expect("a writable folder");
        let to = Tensor::zeros(want.len(), DType::F32).expect("a small tensor");
        Reader::open(&file).expect("a whole file").read("x", &to).expect("half precision");
        assert!(to.to_vec_f32().expect("f32") == want, "{dtype:?}");
    }
}

#[test]
fn a_value_that_is_not_finite_is_placed_past_the_first_piece() {
    let dir = dir();
    let raw = RawConfig {
        sequence_len: 16,
        vocab_size: 20,
        n_layer: 1,
        n_head: 1,
        n_kv_head: 1,
        n_embd: 160,
        generation: Generation::G1,
        ..RawConfig::default()
    };
    let config = GptConfig::new(raw).expect("sizes that fit");
    let model = Nano::zeros(&Reference, config).expect("a small model");
    let name = "transformer.h.0.mlp.c_fc.weight";
    let row = model.table().by_name(name).expect("every model has it");
    let view = model.table().view(model.params(), row.role);
    view.slice(70_001..70_002).write_f32(&[f32::NAN]).expect("one value");
    let at = save(dir.path(), &model, 1);
    let error = checkpoint::load(&Reference, &at).map(|_| ()).expect_err("NaN").to_string();
    assert!(error.contains(name) && error.contains("element 70001 is NaN"), "{error}");
}

/// A file of this header and so many bytes of tensors.
fn file_of(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn a_header_is_believed_where_the_safetensors_crate_believes_it() {
    let one = |shape: &str, from: &str, to: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    let two = |from: usize, to: usize| {
        let b = format!(r#""b":{{"dtype":"F32","shape":[2],"data_offsets":[{from},{to}]}}"#);
        one("[1]", "0", "4").replacen('{', &format!("{{{b},"), 1)
    };
    let huge = "18446744073709551615";
    let claim = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    let cases = [
        (true, file_of(&one("[2,3]", "0", "24"), 24)),
        (true, file_of(&two(4, 12), 12)),
        (true, file_of("{}   ", 0)),
        (true, file_of(r#"{"__metadata__":{"format":"pt"}}"#, 0)),
        (false, vec![]),
        (false, vec![0; 7]),
        (false, vec![0; 8]),
        (false, claim(3)),
        (false, claim(99_999_999)),
        (false, claim(u64::MAX)),
        (false, file_of("{", 0)),
        (false, file_of("[]", 0)),
        (false, [&[2, 0, 0, 0, 0, 0, 0, 0, b'{', 0xff][..]].concat()),
        // Bytes that no tensor has, bytes that the file has not, a gap, an overlap.
        (false, file_of(&one("[2,3]", "0", "24"), 25)),
        (false, file_of(&one("[2,3]", "0", "24"), 23)),
        (false, file_of(&one("[2,3]", "4", "28"), 28)),
        (false, file_of(&two(8, 16), 16)),
        (false, file_of(&two(0, 8), 8)),
        // Sizes that do not fit, or no number.
        (false, file_of(&one("[2,2]", "0", "24"), 24)),
        (false, file_of(&one(&format!("[{huge},{huge}]"), "0", "24"), 24)),
        (false, file_of(&one("[6]", "0", huge), 24)),
        (false, file_of(&one("[4611686018427387903]", "0", "18446744073709551612"), 24)),
        (false, file_of(&one("[6]", "24", "0"), 24)),
        (false, file_of(&one("[-6]", "0", "24"), 24)),
        (false, file_of(&one("[6]", "0", "24").replace("F32", "F31"), 24)),
    ];
    let dir = dir();
    let file = dir.path().join("x.safetensors");
    let opens = |bytes: &[u8]| {
        fs::write(&file, bytes).expect("a writable folder");
        match Reader::open(&file) {
            Ok(_) => true,
            Err(e) => {
                let e = e.to_string();
                assert!(e.contains("x.safetensors: not a whole safetensors file"), "{e}");
                false
            }
        }
    };
    for (n, (want, bytes)) in cases.iter().enumerate() {
        assert_eq!(SafeTensors::deserialize(bytes).is_ok(), *want, "case {n}");
        assert_eq!(opens(bytes), *want, "case {n}");
    }
    // And with any few bytes changed.
    let good = golden(&copies(&small(Generation::G1)));
    let mut draws = Draws(8);
    for round in 0..1000 {
        let mut bad = good.clone();
        for _ in 0..=draws.below(3) {
            bad[draws.below(900)] = draws.below(256) as u8;
        }
        bad.truncate(good.len() - draws.below(2));
        assert_eq!(opens(&bad), SafeTensors::deserialize(&bad).is_ok(), "round {round}");
    }
}
