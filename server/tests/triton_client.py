#!/usr/bin/env python3
"""Checks a running server with the PyPI package tritonclient[grpc], a client that others wrote.

The server must serve the folder given as --repository with `--model-control explicit`. The folder
holds one model or more in Triton's layout; the checks run on the first one (or --model NAME), which
must take batches of one FP32 input with integers of its own behind it.
Temporary models named `requant-check-*` are put beside it and removed again.

Prints a line for each check and `N passed, N failed` at the end; exits with 1 if any failed.
"""

import argparse
import asyncio
import json
import pathlib
import sys

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import np_to_triton_dtype

from triton_session import QUANTIZED, Session, expect, refused, same, same_bytes

CHECKS = []


def check(function):
    """Registers a check; its docstring is what it shows."""
    CHECKS.append(function)
    return function


# ---------------------------------------------------------------- the server


@check
def live_and_ready(s):
    """the server is live and ready"""
    expect(s.client.is_server_live(), "not live")
    expect(s.client.is_server_ready(), "not ready")


@check
def server_metadata(s):
    """server metadata has name, version and extensions"""
    metadata = s.client.get_server_metadata()
    expect(metadata.name and metadata.version, f"name or version is empty: {metadata}")
    for extension in ("model_configuration", "model_repository", "statistics"):
        expect(extension in metadata.extensions, f"no {extension} in {metadata.extensions}")


@check
def standard_health(s):
    """grpc.health.v1 says SERVING"""
    call = s.channel.unary_unary("/grpc.health.v1.Health/Check")
    # The message's only field is the state; 1 is SERVING.
    same(call(b"", timeout=10), b"\x08\x01", "answer")


@check
def reflection(s):
    """reflection v1 and v1alpha list the service"""
    for version in ("v1", "v1alpha"):
        call = s.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        )
        # Field 7 asks for the list of services.
        answer = next(call(iter([b"\x3a\x00"]), timeout=10))
        expect(b"inference.GRPCInferenceService" in answer, f"{version}: {answer}")


# ---------------------------------------------------------------- load and describe


@check
def before_the_load(s):
    """a model that is not loaded is in the index, not ready, and NOT_FOUND"""
    s.client.unload_model(s.model)
    states = {state for (name, _), (state, _) in s.states().items() if name == s.model}
    same(states, {"UNAVAILABLE"}, "state in the index")
    expect(not s.client.is_model_ready(s.model), "ready")
    refused("NOT_FOUND", lambda: s.client.get_model_metadata(s.model), s.model)


@check
def load(s):
    """load makes it ready"""
    s.client.load_model(s.model)
    s.learn()
    expect(s.client.is_model_ready(s.model), "not ready")
    expect(s.client.is_server_ready(), "the server is not ready")
    states = {state for (name, _), (state, _) in s.states().items() if name == s.model}
    same(states, {"READY"}, "state in the index")


@check
def model_health(s):
    """grpc.health.v1 knows the model as a service"""
    call = s.channel.unary_unary("/grpc.health.v1.Health/Check")
    name = f"inference.GRPCInferenceService/{s.model}".encode()
    same(call(b"\x0a" + bytes([len(name)]) + name, timeout=10), b"\x08\x01", "answer")


@check
def model_metadata(s):
    """model metadata has names, types and the batch dimension"""
    metadata = s.client.get_model_metadata(s.model)
    same(metadata.name, s.model, "name")
    expect(metadata.platform, "no platform")
    same(list(metadata.versions), [s.newest().name], "versions")
    for tensor in [*metadata.inputs, *metadata.outputs]:
        expect(tensor.name and tensor.datatype, f"incomplete: {tensor}")
        same(tensor.shape[0], -1, f"batch dimension of {tensor.name}")
    same(metadata.inputs[0].datatype, "FP32", "datatype of the input")
    as_json = s.client.get_model_metadata(s.model, as_json=True)
    same(as_json["name"], s.model, "name in JSON")


@check
def model_properties(s):
    """model metadata has the precision among its properties"""
    properties = s.properties()
    expect(properties.get("precision"), f"properties: {properties}")


@check
def model_config(s):
    """the model's configuration is complete and agrees with the metadata"""
    config = s.client.get_model_config(s.model).config
    metadata = s.client.get_model_metadata(s.model)
    same(config.name, s.model, "name")
    expect(config.max_batch_size > 0, "no batches")
    expect(config.HasField("dynamic_batching"), "no dynamic batching")
    expect(config.instance_group and config.instance_group[0].count > 0, "no instances")
    expect(config.backend or config.platform, "neither backend nor platform")
    for configured, described in [
        *zip(config.input, metadata.inputs, strict=True),
        *zip(config.output, metadata.outputs, strict=True),
    ]:
        same(configured.name, described.name, "tensor")
        same(list(configured.dims), list(described.shape[1:]), f"dims of {configured.name}")
        kind = model_config_pb2.DataType.Name(configured.data_type)
        same(kind.removeprefix("TYPE_"), described.datatype, f"type of {configured.name}")
    as_json = s.client.get_model_config(s.model, as_json=True)
    same(as_json["config"]["name"], s.model, "name in JSON")


# ---------------------------------------------------------------- inference


@check
def infer_fp32(s):
    """FP32 raw: an answer of the described type and shape, the same every time"""
    array = s.array()
    result = s.infer(array)
    metadata = s.client.get_model_metadata(s.model)
    same(len(result.get_response().outputs), len(metadata.outputs), "number of outputs")
    for output in metadata.outputs:
        values = result.as_numpy(output.name)
        expect(values is not None, f"no {output.name}")
        same(np_to_triton_dtype(values.dtype), output.datatype, f"type of {output.name}")
        same(list(values.shape[1:]), list(output.shape[1:]), f"shape of {output.name}")
        same(values.shape[0], 1, f"batch of {output.name}")
        expect(np.isfinite(values).all(), f"{output.name} is not finite")
    same_bytes(s.values(array), result.as_numpy(s.output), "the second answer")
    expect(s.values(s.array() * 4).tobytes() != s.values(array).tobytes(), "input has no effect")


@check
def infer_typed(s):
    """FP32 typed contents give the same bytes as raw ones, as raw contents"""
    array = s.array(2)
    same_bytes(s.answer(s.request(array, "FP32", raw=False)), s.values(array), "answer")


@check
def infer_batches(s):
    """a batch gives the same bytes as its samples one by one"""
    size = min(s.max_batch, 7)
    array = s.array(size)
    whole = s.values(array)
    for row in range(size):
        same_bytes(s.values(array[row : row + 1]), whole[row : row + 1], f"sample {row}")


@check
def infer_quantized(s):
    """the network's own integers (UINT8 or INT8) give the bytes of the numbers they stand for"""
    properties = s.properties()
    fact = lambda name: properties[f"input.{s.input}.quantized.{name}"]
    datatype, zero_point = fact("datatype"), int(fact("zero_point"))
    dtype, scale = QUANTIZED[datatype], np.float32(fact("scale"))
    info = np.iinfo(dtype)
    array = s.random.integers(info.min, info.max, [2, *s.sample], dtype, endpoint=True)
    values = s.values(array)
    same_bytes(s.answer(s.request(array, datatype)), values, "raw")
    same_bytes(s.answer(s.request(array, datatype, raw=False)), values, "typed")
    floats = (array.astype(np.int32) - zero_point).astype(np.float32) * scale
    same_bytes(s.values(floats), values, "the numbers that the integers stand for")
    other = np.int8 if dtype is np.uint8 else np.uint8
    refused("INVALID_ARGUMENT", lambda: s.values(array.view(other)), s.input)
    s.quantized = datatype


@check
def quantized_output(s):
    """an output can be had as integers with their scale and zero point"""
    array = s.array(3)
    message = s.request(array, "FP32")
    wanted = message.outputs.add(name=s.output)
    wanted.parameters["quantized"].bool_param = True
    try:
        response = s.stub.ModelInfer(message)
    except grpc.RpcError as error:
        # An output that the network computes in float has no integers.
        same(error.code().name, "INVALID_ARGUMENT", f"code of {error.details()!r}")
        return
    output = response.outputs[0]
    integers = np.frombuffer(response.raw_output_contents[0], QUANTIZED[output.datatype])
    scale = np.float32(output.parameters["scale"].double_param)
    zero_point = output.parameters["zero_point"].int64_param
    values = (integers.astype(np.int32) - zero_point).astype(np.float32) * scale
    same_bytes(values.reshape(output.shape), s.values(array), "value")


@check
def infer_wanted_outputs(s):
    """only the outputs asked for come back"""
    array = s.array()
    everything = s.infer(array)
    for output in s.client.get_model_metadata(s.model).outputs:
        result = s.infer(array, outputs=[triton.InferRequestedOutput(output.name)])
        names = [tensor.name for tensor in result.get_response().outputs]
        same(names, [output.name], "outputs")
        same_bytes(result.as_numpy(output.name), everything.as_numpy(output.name), output.name)


@check
def infer_classification(s):
    """classification gives value:index strings, the greatest first"""
    array = s.array(2)
    values = s.values(array)
    if values.ndim != 2:
        return
    wanted = triton.InferRequestedOutput(s.output, class_count=3)
    strings = s.infer(array, outputs=[wanted]).as_numpy(s.output)
    same(strings.shape, (2, min(3, values.shape[1])), "shape")
    for row, line in zip(values, strings, strict=True):
        scores = [float(string.split(b":")[0]) for string in line]
        places = [int(string.split(b":")[1]) for string in line]
        same(scores, sorted(scores, reverse=True), "order")
        same(places[0], int(row.argmax()), "winner")


@check
def echoes(s):
    """id and version come back"""
    response = s.infer(s.array(), request_id="request 42").get_response()
    same((response.id, response.model_name), ("request 42", s.model), "id and model")
    same(response.model_version, s.newest().name, "version")
    response = s.infer(s.array(), model_version=s.newest().name).get_response()
    same((response.id, response.model_version), ("", s.newest().name), "id and version")


@check
def gzip(s):
    """gzip requests are answered with the same bytes"""
    array = s.array(2)
    same_bytes(s.values(array, compression_algorithm="gzip"), s.values(array), "answer")


@check
def concurrent(s):
    """64 requests at a time each get their own answer"""
    arrays = [s.array(1 + index % 3) for index in range(64)]
    futures = []
    for array in arrays:
        message = s.request(array, "FP32")
        futures.append(s.stub.ModelInfer.future(message))
    for array, future in zip(arrays, futures, strict=True):
        raw = future.result().raw_output_contents[0]
        same(raw, s.values(array).tobytes(), "answer")


@check
def asynchronous_client(s):
    """the asyncio client works too"""
    array = s.array()

    async def call():
        async with triton_aio.InferenceServerClient(s.server) as client:
            expect(await client.is_model_ready(s.model), "not ready")
            result = await client.infer(s.model, [s.wrap(array)])
            return result.as_numpy(s.output)

    same_bytes(asyncio.run(call()), s.values(array), "answer")


# ---------------------------------------------------------------- refusals


@check
def unknown_names(s):
    """unknown models, versions and outputs have their codes"""
    client, array = s.client, s.array()
    refused("NOT_FOUND", lambda: s.infer(array, model="nobody"), "nobody")
    refused("NOT_FOUND", lambda: client.get_model_metadata("nobody"), "nobody")
    refused("NOT_FOUND", lambda: client.get_model_config("nobody"), "nobody")
    refused("NOT_FOUND", lambda: client.get_inference_statistics("nobody"), "nobody")
    refused("NOT_FOUND", lambda: s.infer(array, model_version="777"), "777")
    refused("INVALID_ARGUMENT", lambda: s.infer(array, model_version="one"), "one")
    expect(not client.is_model_ready("nobody"), "an unknown model is ready")
    expect(not client.is_model_ready(s.model, "777"), "an unknown version is ready")
    wanted = [triton.InferRequestedOutput("nothing")]
    refused("INVALID_ARGUMENT", lambda: s.infer(array, outputs=wanted), "nothing")


@check
def wrong_tensors(s):
    """wrong names, types, shapes and batches are INVALID_ARGUMENT and name the tensor"""
    good = s.array()
    infer = lambda *tensors: s.client.infer(s.model, list(tensors))
    bad = "INVALID_ARGUMENT"
    refused(bad, infer)
    refused(bad, lambda: infer(s.wrap(good, name="other")), "other")
    refused(bad, lambda: infer(s.wrap(good), s.wrap(good, name="other")), "other")
    refused(bad, lambda: infer(s.wrap(good), s.wrap(good)), s.input)
    refused(bad, lambda: infer(s.wrap(good.astype(np.float64))), s.input)
    refused(bad, lambda: infer(s.wrap(good.astype(np.int64))), s.input)
    refused(bad, lambda: infer(s.wrap(good[0])), s.input)
    refused(bad, lambda: infer(s.wrap(good[None])), s.input)
    refused(bad, lambda: infer(s.wrap(np.concatenate([good, good], axis=-1))), s.input)
    refused(bad, lambda: infer(s.wrap(good[:0])), s.input)
    refused(bad, lambda: infer(s.wrap(np.repeat(good, s.max_batch + 1, axis=0))), s.input)
    broken = good.copy()
    broken.flat[0] = np.nan
    refused(bad, lambda: infer(s.wrap(broken)), s.input)
    s.values(good)


@check
def wrong_messages(s):
    """messages that the client would never make are INVALID_ARGUMENT and name the tensor"""

    def mutated(change, raw=True, datatype="FP32"):
        message = s.request(s.array(), datatype, raw)
        change(message)
        refused("INVALID_ARGUMENT", lambda: s.stub.ModelInfer(message), s.input)

    def raw(change):
        return lambda message: message.raw_input_contents.__setitem__(
            0, change(message.raw_input_contents[0])
        )

    def shape(*extents):
        return lambda message: message.inputs[0].shape.__setitem__(slice(None), extents)

    mutated(raw(lambda content: content[:-1]))
    mutated(raw(lambda content: content + b"\0"))
    mutated(raw(lambda content: b""))
    mutated(lambda message: message.raw_input_contents.append(b"more"))
    mutated(lambda message: message.raw_input_contents.clear())
    mutated(lambda message: message.inputs[0].contents.fp32_contents.append(1))
    mutated(lambda message: message.inputs[0].contents.fp32_contents.append(1), raw=False)
    mutated(lambda message: message.inputs[0].contents.int_contents.append(1), raw=False)
    mutated(shape(-1, *s.sample))
    mutated(shape(1, *[-extent for extent in s.sample]))
    mutated(shape(1 << 62, *s.sample))
    mutated(shape())
    mutated(lambda message: setattr(message.inputs[0], "datatype", "FP8"))
    mutated(lambda message: setattr(message.inputs[0], "datatype", ""))
    integers = s.request(np.zeros([1, *s.sample], np.int32), s.quantized, raw=False)
    contents = integers.inputs[0].contents
    (contents.int_contents or contents.uint_contents)[0] = 300
    refused("INVALID_ARGUMENT", lambda: s.stub.ModelInfer(integers), s.input, "300")
    s.values(s.array())


@check
def reserved_parameters(s):
    """parameters of a wrong type or with a reserved name are refused, others pass"""
    array = s.array()
    message = s.request(array, "FP32")
    message.parameters["triton_x"].bool_param = True
    refused("INVALID_ARGUMENT", lambda: s.stub.ModelInfer(message), "triton_x")
    message = s.request(array, "FP32")
    message.parameters["timeout"].string_param = "soon"
    refused("INVALID_ARGUMENT", lambda: s.stub.ModelInfer(message), "timeout")
    same_bytes(s.values(array, parameters={"mine": 1}), s.values(array), "answer")
    same_bytes(s.values(array, priority=1, timeout=10_000_000), s.values(array), "answer")


@check
def deadlines(s):
    """deadlines of the caller are DEADLINE_EXCEEDED, however long the queue would wait"""
    config = """
        max_batch_size: 4
        dynamic_batching {
          preferred_batch_size: 4
          max_queue_delay_microseconds: 60000000
          default_queue_policy { allow_timeout_override: true }
        }
    """
    with s.temporary("deadlines", config, ["1"]) as folder:
        s.client.load_model(folder.name)
        one, four = s.array(), s.array(4)
        infer = lambda array, **options: s.values(array, model=folder.name, **options)
        refused("DEADLINE_EXCEEDED", lambda: infer(one, client_timeout=0.05))
        refused("DEADLINE_EXCEEDED", lambda: infer(one, timeout=50_000, client_timeout=30))
        same_bytes(infer(four, client_timeout=30), s.values(four), "a full batch")


@check
def too_large(s):
    """a message over the limit is RESOURCE_EXHAUSTED and names the flag"""
    message = service_pb2.ModelInferRequest(model_name=s.model)
    message.raw_input_contents.append(bytes(65 << 20))
    refused("RESOURCE_EXHAUSTED", lambda: s.stub.ModelInfer(message), "--max-request-mib")
    s.values(s.array())


# ---------------------------------------------------------------- statistics and repository


@check
def statistics(s):
    """statistics count samples, executions, requests and time"""
    before = s.counts()
    for _ in range(5):
        s.values(s.array(2))
    after = s.counts()
    same(after[0] - before[0], 10, "samples")
    expect(1 <= after[1] - before[1] <= 5, f"executions: {after[1] - before[1]}")
    same(after[2] - before[2], 5, "requests")
    expect(after[3] > before[3], "no time passed")
    every = s.client.get_inference_statistics().model_stats
    expect(s.model in [model.name for model in every], "not among all models")
    model = s.client.get_inference_statistics(s.model).model_stats[0]
    expect(2 in [batch.batch_size for batch in model.batch_stats], "no batches of 2")
    expect(model.last_inference > 1_600_000_000_000, f"last inference: {model.last_inference}")


@check
def load_missing(s):
    """loading what is not there is NOT_FOUND, unloading it is fine"""
    refused("NOT_FOUND", lambda: s.client.load_model("requant-check-nothing"), "nothing")
    s.client.unload_model("requant-check-nothing")


@check
def load_broken(s):
    """a broken model is FAILED_PRECONDITION, has its reason in the index, and stops no other"""
    with s.temporary("broken") as folder:
        (folder / "1").mkdir()
        (folder / "1" / "model.safetensors").write_bytes(b"this is no model")
        refused("FAILED_PRECONDITION", lambda: s.client.load_model(folder.name), folder.name)
        entries = [value for (name, _), value in s.states().items() if name == folder.name]
        same([state for state, _ in entries], ["UNAVAILABLE"], "state in the index")
        expect(entries[0][1], "no reason in the index")
        expect(not s.client.is_server_ready(), "the server is ready with a broken model")
        s.values(s.array())
    expect(s.client.is_server_ready(), "the server is not ready after the unload")


@check
def reload_broken(s):
    """a reload that fails leaves the old version serving"""
    with s.temporary("reload", versions=["1"]) as folder:
        s.client.load_model(folder.name)
        array = s.array()
        wanted = s.values(array)
        same_bytes(s.values(array, model=folder.name), wanted, "before")
        (folder / "config.pbtxt").write_text("max_batchsize: 4\n")
        refused("FAILED_PRECONDITION", lambda: s.client.load_model(folder.name), "max_batchsize")
        same_bytes(s.values(array, model=folder.name), wanted, "after")
        expect(s.client.is_server_ready(), "the server is not ready")


@check
def versions(s):
    """version policies and a configuration given with the load are followed"""
    config = """
        max_batch_size: 4
        dynamic_batching { max_queue_delay_microseconds: 100 }
        instance_group [ { count: 1 kind: KIND_CPU } ]
    """
    with s.temporary("versions", config, ["1", "2", "10"]) as folder:
        served = lambda: list(s.client.get_model_metadata(folder.name).versions)
        s.client.load_model(folder.name)
        same(served(), ["10"], "latest version")
        config = s.client.get_model_config(folder.name).config
        same(config.max_batch_size, 4, "max_batch_size")
        same(config.dynamic_batching.max_queue_delay_microseconds, 100, "queue delay")
        given = {"max_batch_size": 4, "version_policy": {"specific": {"versions": [1, 2]}}}
        s.client.load_model(folder.name, config=json.dumps(given))
        same(served(), ["1", "2"], "specific versions")
        array = s.array()
        response = s.infer(array, model=folder.name).get_response()
        same(response.model_version, "2", "version chosen")
        response = s.infer(array, model=folder.name, model_version="1").get_response()
        same(response.model_version, "1", "version asked for")
        late = lambda: s.infer(array, model=folder.name, model_version="10")
        refused("NOT_FOUND", late, "10")


@check
def unload(s):
    """unload makes it NOT_FOUND, a load brings it back"""
    s.client.unload_model(s.model)
    expect(not s.client.is_model_ready(s.model), "still ready")
    refused("NOT_FOUND", lambda: s.values(s.array()), s.model)
    states = {state for (name, _), (state, _) in s.states().items() if name == s.model}
    same(states, {"UNAVAILABLE"}, "state in the index")
    s.client.load_model(s.model)
    s.values(s.array())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--repository", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--model", metavar="NAME")
    options = parser.parse_args()
    folders = [path.name for path in options.repository.iterdir() if path.is_dir()]
    models = sorted(name for name in folders if not name.startswith("requant-check-"))
    if not models:
        sys.exit(f"no model in {options.repository}")
    session = Session(options.server, options.repository, options.model or models[0])
    failed = 0
    for function in CHECKS:
        try:
            function(session)
            print(f"PASS {function.__doc__}", flush=True)
        except Exception as error:  # whatever goes wrong is this check's result
            failed += 1
            text = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"FAIL {function.__doc__}: {text}", flush=True)
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
