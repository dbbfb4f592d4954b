//! What the TFLite tests share: a plain writer of flatbuffers, and small models made by hand.
#![allow(dead_code, unreachable_pub)]

/// A field's contents.
#[derive(Clone, Debug)]
pub enum Field {
    U8(u8),
    I32(i32),
    U64(u64),
    F32(f32),
    /// A string or vector of bytes.
    Bytes(Vec<u8>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    I64s(Vec<i64>),
    Table(Table),
    Tables(Vec<Table>),
}

/// Fields by number.
pub type Table = Vec<(usize, Field)>;

/// A file with an identifier.
pub fn file(identifier: &[u8; 4], root: &Table) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend(identifier);
    let at = write_table(&mut out, root);
    out[..4].copy_from_slice(&(at as u32).to_le_bytes());
    out
}

fn write_table(out: &mut Vec<u8>, table: &Table) -> usize {
    let fields = table.iter().map(|(id, _)| id + 1).max().unwrap_or(0);
    let vtable = out.len();
    let vtable_size = 4 + 2 * fields;
    // Every field takes 8 bytes: simple, and allowed.
    let size = 8 + 8 * table.len();
    out.extend((vtable_size as u16).to_le_bytes());
    out.extend((size as u16).to_le_bytes());
    let mut entries = vec![0u16; fields];
    for (place, (id, _)) in table.iter().enumerate() {
        entries[*id] = (8 + 8 * place) as u16;
    }
    entries
        .iter()
        .for_each(|entry| out.extend(entry.to_le_bytes()));
    let at = out.len();
    out.extend(((at - vtable) as i32).to_le_bytes());
    out.resize(at + size, 0);
    for (place, (_, field)) in table.iter().enumerate() {
        write_field(out, at + 8 + 8 * place, field);
    }
    at
}

fn write_field(out: &mut Vec<u8>, at: usize, field: &Field) {
    let inline: Vec<u8> = match field {
        Field::U8(value) => vec![*value],
        Field::I32(value) => value.to_le_bytes().to_vec(),
        Field::U64(value) => value.to_le_bytes().to_vec(),
        Field::F32(value) => value.to_le_bytes().to_vec(),
        Field::Bytes(_)
        | Field::I32s(_)
        | Field::F32s(_)
        | Field::I64s(_)
        | Field::Table(_)
        | Field::Tables(_) => {
            let target = write_behind(out, field);
            ((target - at) as u32).to_le_bytes().to_vec()
        }
    };
    out[at..at + inline.len()].copy_from_slice(&inline);
}

fn write_behind(out: &mut Vec<u8>, field: &Field) -> usize {
    let vector = |out: &mut Vec<u8>, len: usize, bytes: Vec<u8>| {
        let at = out.len();
        out.extend((len as u32).to_le_bytes());
        out.extend(bytes);
        at
    };
    match field {
        Field::Bytes(v) => vector(out, v.len(), v.clone()),
        Field::I32s(v) => vector(
            out,
            v.len(),
            v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        Field::F32s(v) => vector(
            out,
            v.len(),
            v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        Field::I64s(v) => vector(
            out,
            v.len(),
            v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        Field::Table(table) => write_table(out, table),
        Field::Tables(tables) => {
            let at = vector(out, tables.len(), vec![0; 4 * tables.len()]);
            for (index, table) in tables.iter().enumerate() {
                let place = at + 4 + 4 * index;
                let target = write_table(out, table);
                out[place..place + 4].copy_from_slice(&((target - place) as u32).to_le_bytes());
            }
            at
        }
        Field::U8(_) | Field::I32(_) | Field::U64(_) | Field::F32(_) => out.len(),
    }
}

/// Element type numbers.
pub const F32: u8 = 0;
pub const I32: u8 = 2;
pub const U8: u8 = 3;
pub const I16: u8 = 7;
pub const I8: u8 = 9;

/// A tensor; constant where it has data.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<i32>,
    pub elements: u8,
    pub scales: Vec<f32>,
    pub zero_points: Vec<i64>,
    pub axis: i32,
    pub data: Vec<u8>,
    /// More fields of the table.
    pub more: Table,
}

/// An activation of 8 bits.
pub fn activation(name: &str, dims: &[i32], elements: u8, scale: f32, zero_point: i64) -> Tensor {
    Tensor {
        name: name.to_owned(),
        dims: dims.to_vec(),
        elements,
        scales: vec![scale],
        zero_points: vec![zero_point],
        axis: 0,
        data: Vec::new(),
        more: Vec::new(),
    }
}

/// A constant without a scale.
pub fn constant(name: &str, dims: &[i32], elements: u8, data: Vec<u8>) -> Tensor {
    Tensor {
        scales: Vec::new(),
        zero_points: Vec::new(),
        data,
        ..activation(name, dims, elements, 1.0, 0)
    }
}

/// A list of 32-bit integers.
pub fn list(name: &str, dims: &[i32], values: &[i32]) -> Tensor {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    constant(name, dims, I32, data)
}

/// An operator: its number, operands, results, and number and fields of its options.
#[derive(Clone, Debug)]
pub struct Operator {
    pub code: i32,
    pub inputs: Vec<i32>,
    pub outputs: Vec<i32>,
    pub options: Option<(u8, Table)>,
}

pub fn operator(code: i32, inputs: &[i32], outputs: &[i32]) -> Operator {
    Operator {
        code,
        inputs: inputs.to_vec(),
        outputs: outputs.to_vec(),
        options: None,
    }
}

impl Operator {
    pub fn with(mut self, kind: u8, options: Table) -> Self {
        self.options = Some((kind, options));
        self
    }
}

/// A model of one graph.
#[derive(Clone, Debug)]
pub struct Model {
    pub version: i32,
    pub graphs: usize,
    pub tensors: Vec<Tensor>,
    pub operators: Vec<Operator>,
    pub inputs: Vec<i32>,
    pub outputs: Vec<i32>,
}

impl Model {
    /// A model whose first tensor is its input and whose last one is its output.
    pub fn new(tensors: Vec<Tensor>, operators: Vec<Operator>) -> Self {
        let last = tensors.len() as i32 - 1;
        Model {
            version: 3,
            graphs: 1,
            tensors,
            operators,
            inputs: vec![0],
            outputs: vec![last],
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        file(b"TFL3", &self.root())
    }

    pub fn root(&self) -> Table {
        let mut buffers = vec![Vec::new()];
        let tensor = |tensor: &Tensor| {
            let mut fields = vec![
                (0, Field::I32s(tensor.dims.clone())),
                (1, Field::U8(tensor.elements)),
                (3, Field::Bytes(tensor.name.clone().into_bytes())),
            ];
            if !tensor.data.is_empty() {
                fields.push((2, Field::I32(buffers.len() as i32)));
                buffers.push(vec![(0, Field::Bytes(tensor.data.clone()))]);
            }
            let quantization = vec![
                (2, Field::F32s(tensor.scales.clone())),
                (3, Field::I64s(tensor.zero_points.clone())),
                (6, Field::I32(tensor.axis)),
            ];
            fields.push((4, Field::Table(quantization)));
            fields.extend(tensor.more.clone());
            fields
        };
        let tensors = self.tensors.iter().map(tensor).collect();
        let code = |operator: &Operator| {
            vec![
                (0, Field::U8(operator.code.min(127) as u8)),
                (3, Field::I32(operator.code)),
            ]
        };
        let operator = |(index, operator): (usize, &Operator)| {
            let mut fields = vec![
                (0, Field::I32(index as i32)),
                (1, Field::I32s(operator.inputs.clone())),
                (2, Field::I32s(operator.outputs.clone())),
            ];
            if let Some((kind, options)) = &operator.options {
                fields.push((3, Field::U8(*kind)));
                fields.push((4, Field::Table(options.clone())));
            }
            fields
        };
        let graph = vec![
            (0, Field::Tables(tensors)),
            (1, Field::I32s(self.inputs.clone())),
            (2, Field::I32s(self.outputs.clone())),
            (
                3,
                Field::Tables(self.operators.iter().enumerate().map(operator).collect()),
            ),
        ];
        vec![
            (0, Field::I32(self.version)),
            (1, Field::Tables(self.operators.iter().map(code).collect())),
            (2, Field::Tables(vec![graph; self.graphs])),
            (3, Field::Bytes(b"by hand".to_vec())),
            (4, Field::Tables(buffers)),
        ]
    }
}

/// A convolution 3×3 of `[1, 6, 6, 2]` to four channels, padding SAME, RELU6; then an average pool, a
/// fully connected layer and a softmax: the layers most networks are made of.
pub fn network() -> Model {
    let weights = Tensor {
        scales: vec![0.01, 0.02, 0.03, 0.04],
        zero_points: vec![0; 4],
        ..constant("w", &[4, 3, 3, 2], I8, (0..72).map(|i| i * 3).collect())
    };
    let dense = Tensor {
        scales: vec![0.05],
        zero_points: vec![0],
        ..constant("d", &[3, 4], I8, vec![7; 12])
    };
    let tensors = vec![
        activation("x", &[1, 6, 6, 2], I8, 0.02, 3),
        weights,
        list("b", &[4], &[100, -200, 300, 0]),
        activation("c", &[1, 6, 6, 4], I8, 0.1, -128),
        activation("p", &[1, 1, 1, 4], I8, 0.1, -128),
        dense,
        activation("f", &[1, 3], I8, 0.2, 5),
        activation("y", &[1, 3], I8, 1.0 / 256.0, -128),
    ];
    let conv = vec![(1, Field::I32(1)), (2, Field::I32(1)), (3, Field::U8(3))];
    let pool = vec![
        (0, Field::U8(1)),
        (1, Field::I32(1)),
        (2, Field::I32(1)),
        (3, Field::I32(6)),
        (4, Field::I32(6)),
    ];
    let operators = vec![
        operator(3, &[0, 1, 2], &[3]).with(1, conv),
        operator(1, &[3], &[4]).with(5, pool),
        operator(9, &[4, 5, -1], &[6]).with(8, vec![]),
        operator(25, &[6], &[7]).with(9, vec![(0, Field::F32(1.0))]),
    ];
    Model::new(tensors, operators)
}

/// A chain of the operators that move, join and map: pad, resize, concatenation, strided slice,
/// transpose, split, mean, sum, product, leaky ReLU, requantization, sigmoid.
pub fn tour() -> Model {
    let at = |name: &str, dims: &[i32]| activation(name, dims, I8, 0.5, 1);
    let tensors = vec![
        at("x", &[1, 4, 4, 2]),
        list("paddings", &[4, 2], &[0, 0, 1, 1, 2, 0, 0, 0]),
        at("padded", &[1, 6, 6, 2]),
        list("size", &[2], &[4, 4]),
        at("resized", &[1, 4, 4, 2]),
        at("joined", &[1, 4, 4, 4]),
        list("begin", &[4], &[0, 0, -1, 0]),
        list("end", &[4], &[0, 4, -5, 0]),
        list("strides", &[4], &[1, 2, -2, 1]),
        at("sliced", &[1, 2, 2, 4]),
        list("perm", &[4], &[0, 3, 1, 2]),
        at("turned", &[1, 4, 2, 2]),
        list("axis", &[], &[1]),
        at("left", &[1, 2, 2, 2]),
        at("right", &[1, 2, 2, 2]),
        at("added", &[1, 2, 2, 2]),
        Tensor {
            data: vec![1, 2],
            ..at("factors", &[1, 1, 1, 2])
        },
        at("multiplied", &[1, 2, 2, 2]),
        list("axes", &[2], &[2, 1]),
        activation("averaged", &[1, 2], I8, 0.25, 0),
        activation("leaky", &[1, 2], I8, 0.5, 0),
        activation("unsigned", &[1, 2], U8, 0.4, 100),
        activation("y", &[1, 2], U8, 1.0 / 256.0, 0),
    ];
    let operators = vec![
        operator(34, &[0, 1], &[2]),
        operator(23, &[2, 3], &[4]).with(15, vec![(3, Field::U8(1))]),
        operator(2, &[4, 0], &[5]).with(10, vec![(0, Field::I32(-1))]),
        operator(45, &[5, 6, 7, 8], &[9]).with(32, vec![(0, Field::I32(1)), (1, Field::I32(9))]),
        operator(39, &[9, 10], &[11]),
        operator(49, &[12, 11], &[13, 14]).with(35, vec![(0, Field::I32(2))]),
        operator(41, &[13, 14], &[15]).with(28, vec![(0, Field::U8(1))]),
        operator(18, &[15, 16], &[17]),
        operator(40, &[17, 18], &[19]),
        operator(98, &[19], &[20]).with(75, vec![(0, Field::F32(0.3))]),
        operator(114, &[20], &[21]),
        operator(14, &[21], &[22]),
    ];
    Model::new(tensors, operators)
}
