"""The connection of triton_client.py to a server, and the ways in which its checks fail.

What tritonclient can say goes through its client; what it cannot, such as typed contents, goes as a
protocol message through the stub that it ships.
"""

import contextlib
import shutil

import grpc
import numpy as np
import tritonclient.grpc as triton
from google.protobuf import unknown_fields
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

QUANTIZED = {"UINT8": np.uint8, "INT8": np.int8}


def expect(condition, message):
    """Fails the running check unless `condition` holds."""
    if not condition:
        raise AssertionError(message)


def same(got, wanted, what):
    """Fails the running check unless both are equal."""
    expect(got == wanted, f"{what}: got {got!r}, expected {wanted!r}")


def same_bytes(got, wanted, what):
    """Fails the running check unless two arrays agree in every bit."""
    same((got.dtype, got.shape), (wanted.dtype, wanted.shape), f"{what}: type and shape")
    differing = int((got.view(np.uint8) != wanted.view(np.uint8)).sum())
    expect(differing == 0, f"{what}: {differing} bytes differ")


def refused(code, call, *names):
    """Fails the running check unless `call` is refused with `code` and a message naming `names`."""
    try:
        call()
    except InferenceServerException as error:
        got, text = error.status().removeprefix("StatusCode."), error.message()
    except grpc.RpcError as error:
        got, text = error.code().name, error.details()
    else:
        raise AssertionError(f"accepted, expected {code}")
    same(got, code, f"code of {text!r}")
    for name in names:
        expect(name in text, f"message {text!r} does not name {name!r}")


class Session:
    """The connection, the model under test and what earlier checks learnt about it."""

    def __init__(self, server, repository, model):
        self.client = triton.InferenceServerClient(server)
        self.channel = grpc.insecure_channel(server, [("grpc.max_receive_message_length", -1)])
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.server, self.repository, self.model = server, repository, model
        self.random = np.random.default_rng(7)
        self.input, self.output, self.sample, self.max_batch = None, None, None, None
        self.quantized = None

    def learn(self):
        """Reads names and shapes from the server's description of the model."""
        metadata = self.client.get_model_metadata(self.model)
        config = self.client.get_model_config(self.model).config
        self.input, self.output = metadata.inputs[0].name, metadata.outputs[0].name
        self.sample = [max(extent, 1) for extent in metadata.inputs[0].shape[1:]]
        self.max_batch = config.max_batch_size

    def array(self, batch=1):
        """A random batch as FP32."""
        return self.random.normal(size=[batch, *self.sample]).astype(np.float32)

    def wrap(self, array, name=None, datatype=None):
        """An array as the client's input."""
        datatype = datatype or np_to_triton_dtype(array.dtype)
        tensor = triton.InferInput(name or self.input, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        return tensor

    def infer(self, array, model=None, **options):
        """Runs the model through the client and gives back its result object."""
        return self.client.infer(model or self.model, [self.wrap(array)], **options)

    def values(self, array, **options):
        """Runs the model through the client and gives back the first output."""
        return self.infer(array, **options).as_numpy(self.output)

    def request(self, array, datatype, raw=True):
        """A protocol message with the array in raw or typed form."""
        message = service_pb2.ModelInferRequest(model_name=self.model)
        tensor = message.inputs.add(name=self.input, datatype=datatype, shape=array.shape)
        if raw:
            message.raw_input_contents.append(array.tobytes())
        elif datatype == "FP32":
            tensor.contents.fp32_contents.extend(array.ravel().tolist())
        elif datatype == "INT8":
            tensor.contents.int_contents.extend(array.ravel().tolist())
        else:
            tensor.contents.uint_contents.extend(array.ravel().tolist())
        return message

    def answer(self, message):
        """Sends a protocol message and gives back the first output."""
        response = self.stub.ModelInfer(message)
        output = response.outputs[0]
        dtype = {"FP32": np.float32, **QUANTIZED}[output.datatype]
        return np.frombuffer(response.raw_output_contents[0], dtype).reshape(output.shape)

    def states(self):
        """State and reason of every model by name and version."""
        index = self.client.get_model_repository_index()
        return {(row.name, row.version): (row.state, row.reason) for row in index.models}

    def counts(self):
        """Samples, executions, successes and the success time of the model."""
        model = self.client.get_inference_statistics(self.model).model_stats[0]
        success = model.inference_stats.success
        return model.inference_count, model.execution_count, success.count, success.ns

    @contextlib.contextmanager
    def temporary(self, name, config=None, versions=()):
        """A model for one check: copies of the model under test as these versions."""
        folder = self.repository / f"requant-check-{name}"
        folder.mkdir()
        try:
            for version in versions:
                shutil.copytree(self.newest(), folder / version)
            if config:
                (folder / "config.pbtxt").write_text(config)
            yield folder
        finally:
            self.client.unload_model(folder.name)
            shutil.rmtree(folder)

    def properties(self):
        """The free facts of the model's description, which the client's descriptors lack."""
        fields = unknown_fields.UnknownFieldSet(self.client.get_model_metadata(self.model))
        entry = model_config_pb2.ModelConfig.MetricTagsEntry  # as well a map of text to text
        entries = [entry.FromString(field.data) for field in fields if field.field_number == 6]
        return {entry.key: entry.value for entry in entries}

    def newest(self):
        """The folder of the highest version of the model under test."""
        folders = [path for path in (self.repository / self.model).iterdir() if path.name.isdigit()]
        return max(folders, key=lambda path: int(path.name))
