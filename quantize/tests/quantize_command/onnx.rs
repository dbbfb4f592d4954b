//! Small float models as ONNX files, their bytes written here field by field: what the command reads is
//! not made by the code that reads it.

use requant_conformance::Rng;

/// A protocol buffer message under construction.
#[derive(Clone, Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn int(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value as u64);
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    fn message(self, field: u64, inner: &Message) -> Self {
        self.bytes(field, &inner.0)
    }
}

/// A float model under construction, from `x` to `y`.
#[derive(Clone, Debug)]
pub(super) struct Model {
    opset: i64,
    graph: Message,
    rng: Rng,
    count: usize,
}

impl Model {
    pub(super) fn new(seed: u64) -> Self {
        Model {
            opset: 17,
            graph: Message::default().text(2, "test"),
            rng: Rng::new(seed),
            count: 0,
        }
    }

    /// An input; text for an extent that is not known.
    pub(super) fn input(&mut self, name: &str, dims: &[&str]) -> &mut Self {
        self.port(11, name, dims)
    }

    pub(super) fn output(&mut self, name: &str) -> &mut Self {
        self.port(12, name, &["N"])
    }

    fn port(&mut self, field: u64, name: &str, dims: &[&str]) -> &mut Self {
        let mut shape = Message::default();
        for dim in dims {
            let extent = match dim.parse() {
                Ok(extent) => Message::default().int(1, extent),
                Err(_) => Message::default().text(2, dim),
            };
            shape = shape.message(1, &extent);
        }
        let tensor = Message::default().int(1, 1).message(2, &shape);
        let kind = Message::default().message(1, &tensor);
        let port = Message::default().text(1, name).message(2, &kind);
        self.add(field, &port)
    }

    fn add(&mut self, field: u64, message: &Message) -> &mut Self {
        self.graph = std::mem::take(&mut self.graph).message(field, message);
        self
    }

    /// A constant of reals.
    pub(super) fn constant(&mut self, name: &str, dims: &[usize], values: &[f32]) -> &mut Self {
        let mut tensor = Message::default();
        for &dim in dims {
            tensor = tensor.int(1, dim as i64);
        }
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = tensor.int(2, 1).text(8, name).bytes(9, &raw);
        self.add(5, &tensor)
    }

    /// A node; attributes are lists of integers, those of one integer a plain integer.
    pub(super) fn node(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        output: &str,
        attributes: &[(&str, &[i64])],
    ) -> &mut Self {
        let mut node = Message::default();
        for input in inputs {
            node = node.text(1, input);
        }
        node = node.text(2, output).text(3, name).text(4, op);
        for (name, values) in attributes {
            let attribute = Message::default().text(1, name);
            let attribute = match values {
                [value] => attribute.int(3, *value).int(20, 2),
                values => {
                    let ints = values.iter();
                    ints.fold(attribute, |a, &v| a.int(8, v)).int(20, 7)
                }
            };
            node = node.message(5, &attribute);
        }
        self.add(1, &node)
    }

    /// A node whose attributes are texts.
    pub(super) fn node_of(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        output: &str,
        attributes: &[(&str, &str)],
    ) -> &mut Self {
        let inputs = inputs.iter();
        let node = inputs.fold(Message::default(), |node, input| node.text(1, input));
        let mut node = node.text(2, output).text(3, name).text(4, op);
        for (name, value) in attributes {
            let attribute = Message::default().text(1, name).text(4, value).int(20, 3);
            node = node.message(5, &attribute);
        }
        self.add(1, &node)
    }

    /// Normal-looking numbers of standard deviation about `scale`.
    pub(super) fn reals(&mut self, count: usize, scale: f64) -> Vec<f32> {
        let mut one = || (0..6).map(|_| self.rng.unit() - 0.5).sum::<f64>();
        (0..count).map(|_| (one() * 1.4 * scale) as f32).collect()
    }

    /// A square convolution that keeps height and width at stride 1; its weights and biases are drawn.
    pub(super) fn conv(
        &mut self,
        (from, to): (&str, &str),
        (outputs, inputs, kernel, stride): (usize, usize, usize, i64),
    ) -> &mut Self {
        let weights = self.reals(
            outputs * inputs * kernel * kernel,
            1.0 / ((inputs * kernel * kernel) as f64).sqrt(),
        );
        let bias = self.reals(outputs, 0.1);
        let dims = [outputs, inputs, kernel, kernel];
        self.conv_of((from, to), &dims, &weights, &bias, stride)
    }

    /// As [`Model::conv`] with these weights.
    pub(super) fn conv_of(
        &mut self,
        (from, to): (&str, &str),
        dims: &[usize],
        weights: &[f32],
        bias: &[f32],
        stride: i64,
    ) -> &mut Self {
        self.count += 1;
        let name = format!("conv{}", self.count);
        let (w, b) = (format!("{name}.w"), format!("{name}.b"));
        self.constant(&w, dims, weights);
        self.constant(&b, &[dims[0]], bias);
        let pad = (dims[2] / 2) as i64;
        let attributes: [(&str, &[i64]); 2] = [("pads", &[pad; 4]), ("strides", &[stride, stride])];
        self.node("Conv", &name, &[from, &w, &b], to, &attributes)
    }

    pub(super) fn relu(&mut self, from: &str, to: &str) -> &mut Self {
        self.node("Relu", &format!("relu_{to}"), &[from], to, &[])
    }

    /// The mean of each channel, and a matrix product `classes` of them: the output.
    pub(super) fn head(&mut self, from: &str, channels: usize, classes: usize) -> &mut Self {
        self.logits((from, "y"), channels, classes).output("y")
    }

    /// As [`Model::head`]; the result is no output yet.
    pub(super) fn logits(
        &mut self,
        (from, to): (&str, &str),
        channels: usize,
        classes: usize,
    ) -> &mut Self {
        let weights = self.reals(classes * channels, 1.0);
        let bias = self.reals(classes, 0.1);
        self.constant("fc.w", &[classes, channels], &weights);
        self.constant("fc.b", &[classes], &bias);
        self.node("GlobalAveragePool", "pool", &[from], "pooled", &[]);
        self.node("Flatten", "flat", &["pooled"], "flat", &[("axis", &[1])]);
        let inputs = ["flat", "fc.w", "fc.b"];
        self.node("Gemm", "fc", &inputs, to, &[("transB", &[1])])
    }

    /// The file.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let opset = Message::default().text(1, "").int(2, self.opset);
        let model = Message::default().int(1, 8).message(8, &opset);
        model.message(7, &self.graph).0
    }
}

/// Four layers, `[N, 2, 8, 8]` to five classes.
pub(super) fn plain() -> Model {
    let mut model = Model::new(1);
    model.input("x", &["N", "2", "8", "8"]);
    model.conv(("x", "a"), (8, 2, 3, 1)).relu("a", "b");
    model.conv(("b", "c"), (8, 8, 3, 1)).relu("c", "d");
    model.conv(("d", "e"), (12, 8, 3, 2)).relu("e", "f");
    model.head("f", 12, 5);
    model
}

/// Five layers with two sums around some of them.
pub(super) fn residual() -> Model {
    let mut model = Model::new(2);
    model.input("x", &["N", "2", "8", "8"]);
    model.conv(("x", "a"), (8, 2, 3, 1)).relu("a", "b");
    model.conv(("b", "c"), (8, 8, 3, 1)).relu("c", "d");
    model.conv(("d", "e"), (8, 8, 3, 1));
    model
        .node("Add", "sum1", &["e", "b"], "f", &[])
        .relu("f", "g");
    model.conv(("g", "h"), (8, 8, 3, 1));
    model
        .node("Add", "sum2", &["h", "g"], "i", &[])
        .relu("i", "j");
    model.head("j", 8, 5);
    model
}
