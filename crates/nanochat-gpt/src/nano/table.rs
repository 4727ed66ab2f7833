//! The parameter table: one row a tensor - its name in a checkpoint, shape, first values, optimizer
//! group. Everything that lists parameters reads it here.

use nanochat_compute::Tensor;

use crate::GptConfig;
use crate::config::SMEAR_CHANNELS;

/// What a parameter is for; `usize` is the layer.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Wte,
    LmHead,
    Q(usize),
    K(usize),
    V(usize),
    AttnProj(usize),
    VeGate(usize),
    Fc(usize),
    MlpProj(usize),
    ValueEmbed(usize),
    ResidLambdas,
    X0Lambdas,
    SmearGate,
    SmearLambda,
    BackoutLambda,
}

/// First values of a parameter. `N(s)`: normal of standard deviation s; `U(a, b)`: uniform.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All the same.
    Fill(f32),
    /// Normal with this standard deviation.
    Normal(f32),
    /// Uniform between the two.
    Uniform(f32, f32),
    /// From the first to the second over the layers.
    Line(f32, f32),
}

/// Which optimizer, rates and decay a parameter gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// AdamW: the output head.
    LmHead,
    /// AdamW: the token embedding.
    Wte,
    /// AdamW: value embeddings.
    ValueEmbeds,
    /// AdamW: residual lambdas.
    ResidLambdas,
    /// AdamW: x0 lambdas.
    X0Lambdas,
    /// AdamW: smear gate, smear lambda, backout lambda.
    Smear,
    /// Muon: every matrix inside a layer.
    Matrix,
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is for.
    pub role: Role,
    /// Name as in upstream's state dict.
    pub name: String,
    /// Shape, row-major; matrices are (out, in).
    pub shape: Vec<usize>,
    /// First values.
    pub init: Init,
    /// Optimizer group.
    pub group: Group,
    /// First element in the stretch of all parameters.
    pub offset: usize,
}

impl Row {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a parameter of no elements; no row is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when it multiplies activations (FLOPs count it): every linear layer, gates included.
    pub fn is_linear(&self) -> bool {
        matches!(self.group, Group::LmHead | Group::Matrix) || self.role == Role::SmearGate
    }
}

/// All parameters of a model.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Row>,
    len: usize,
}

/// Parameters start at multiples of this many elements (one cache line).
const STRIDE: usize = 16;

impl Table {
    /// The table of a config. Source: nanochat `gpt.py`, `init_weights`.
    pub fn new(config: &GptConfig) -> Self {
        let rules = config.rules();
        let (c, kv, vp, l) =
            (config.n_embd, config.kv_dim(), config.padded_vocab(), config.n_layer);
        let s = 3f32.sqrt() / (c as f32).sqrt();
        let first_generation = !rules.lambdas;
        // The first generation drew every matrix from N(0, min(1, sqrt(out/in)) / sqrt(in)).
        let linear = |out: usize, within: usize, later: Init| {
            if first_generation {
                let fan = (within as f32).sqrt();
                Init::Normal((out as f32 / within as f32).sqrt().min(1.0) / fan)
            } else {
                later
            }
        };
        let zero = Init::Fill(0.0);
        let head = if first_generation { zero } else { Init::Normal(0.001) };
        let wte = Init::Normal(if first_generation { 1.0 } else { 0.8 });
        let mut table = Self { rows: Vec::new(), len: 0 };
        table.push(Role::Wte, "transformer.wte.weight".into(), &[vp, c], wte, Group::Wte);
        table.push(Role::LmHead, "lm_head.weight".into(), &[vp, c], head, Group::LmHead);
        for i in 0..l {
            let name = |tail: &str| format!("transformer.h.{i}.{tail}.weight");
            let mut matrix = |role, tail, out: usize, within: usize, init| {
                table.push(role, name(tail), &[out, within], init, Group::Matrix);
            };
            let wide = Init::Uniform(-s, s);
            matrix(Role::Q(i), "attn.c_q", c, c, linear(c, c, wide));
            matrix(Role::K(i), "attn.c_k", kv, c, linear(kv, c, wide));
            matrix(Role::V(i), "attn.c_v", kv, c, linear(kv, c, wide));
            matrix(Role::AttnProj(i), "attn.c_proj", c, c, zero);
            if let Some((channels, _)) = rules.value_gate
                && config.has_value_embedding(i)
            {
                let gate = Init::Uniform(0.0, 0.02);
                matrix(Role::VeGate(i), "attn.ve_gate", config.n_kv_head, channels, gate);
            }
            let narrow = Init::Uniform(-0.4 * s, 0.4 * s);
            matrix(Role::Fc(i), "mlp.c_fc", 4 * c, c, linear(4 * c, c, narrow));
            matrix(Role::MlpProj(i), "mlp.c_proj", c, 4 * c, zero);
        }
        for i in (0..l).filter(|&i| config.has_value_embedding(i)) {
            let name = format!("value_embeds.{i}.weight");
            let init = Init::Uniform(-s, s);
            table.push(Role::ValueEmbed(i), name, &[vp, kv], init, Group::ValueEmbeds);
        }
        if rules.lambdas {
            let resid = Init::Line(1.15, 1.05);
            let x0 = Init::Line(0.20, 0.05);
            let name = |n: &str| n.to_owned();
            table.push(Role::ResidLambdas, name("resid_lambdas"), &[l], resid, Group::ResidLambdas);
            table.push(Role::X0Lambdas, name("x0_lambdas"), &[l], x0, Group::X0Lambdas);
        }
        if rules.smear_backout {
            let gate = Init::Uniform(0.0, 0.02);
            let shape = [1, SMEAR_CHANNELS];
            table.push(Role::SmearGate, "smear_gate.weight".into(), &shape, gate, Group::Smear);
            table.push(Role::SmearLambda, "smear_lambda".into(), &[1], zero, Group::Smear);
            let backout = Init::Fill(0.2);
            table.push(Role::BackoutLambda, "backout_lambda".into(), &[1], backout, Group::Smear);
        }
        table
    }

    fn push(&mut self, role: Role, name: String, shape: &[usize], init: Init, group: Group) {
        let row = Row { role, name, shape: shape.into(), init, group, offset: self.len };
        self.len = (row.offset + row.len()).next_multiple_of(STRIDE);
        self.rows.push(row);
    }

    /// The same parameters at other places of a stretch of `len` elements: `offsets` of the rows, in
    /// their order.
    pub(crate) fn placed(mut self, offsets: &[usize], len: usize) -> Self {
        assert_eq!(self.rows.len(), offsets.len(), "a place for every row");
        for (row, &offset) in self.rows.iter_mut().zip(offsets) {
            assert!(offset + row.len() <= len, "{} leaves the stretch", row.name);
            row.offset = offset;
        }
        self.len = len;
        self
    }

    /// The rows, in the order of memory unless a file gave them another.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Elements of the stretch that holds all parameters, gaps between rows included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a table of no rows; no model has one.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The row with this role, if the model has it.
    pub fn row(&self, role: Role) -> Option<&Row> {
        self.rows.iter().find(|r| r.role == role)
    }

    /// The row with this name, if the model has it.
    pub fn by_name(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.name == name)
    }

    /// The part of `all` (parameters, gradients: [`Table::len`] elements) that belongs to a role.
    ///
    /// Panics when the model has no such parameter.
    pub fn view(&self, all: &Tensor, role: Role) -> Tensor {
        let row =
            self.row(role).expect("the generation has this parameter: asked by its own rules");
        all.slice(row.offset..row.offset + row.len())
    }
}
