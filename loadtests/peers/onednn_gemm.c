/* A product of one shape by oneDNN, timed on request: u8 [m, k] by s8 [n, k], an f32 bias and an f32 scale for each
 * of n, to u8. A line of stdin asks for so many runs; a line of stdout gives the seconds that all of them took.
 * Weights are reordered once, to the form that the primitive asks for. gemm.py builds and runs it. */
#define _GNU_SOURCE
#include <dnnl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHECK(call)                                                                \
  do {                                                                             \
    dnnl_status_t status_ = (call);                                                \
    if (status_ != dnnl_success) {                                                 \
      fprintf(stderr, "%s: oneDNN's status %d\n", #call, (int)status_);            \
      exit(1);                                                                     \
    }                                                                              \
  } while (0)

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static dnnl_memory_desc_t describe(int rank, dnnl_dim_t first, dnnl_dim_t second, dnnl_data_type_t type,
                                   dnnl_format_tag_t tag) {
  dnnl_dims_t dims = {first, second};
  dnnl_memory_desc_t description;
  CHECK(dnnl_memory_desc_create_with_tag(&description, rank, dims, type, tag));
  return description;
}

static dnnl_memory_t memory_of(const_dnnl_memory_desc_t description, dnnl_engine_t engine, int value) {
  size_t bytes = dnnl_memory_desc_get_size(description);
  void *data = aligned_alloc(64, (bytes + 63) / 64 * 64);
  memset(data, value, bytes);
  dnnl_memory_t memory;
  CHECK(dnnl_memory_create(&memory, description, engine, data));
  return memory;
}

int main(int count, char **words) {
  if (count != 5) {
    fprintf(stderr, "usage: onednn_gemm M N K THREADS\n");
    return 2;
  }
  dnnl_dim_t m = atol(words[1]), n = atol(words[2]), k = atol(words[3]);
  /* Its threads are as many as the processors that it may use. */
  cpu_set_t processors;
  CPU_ZERO(&processors);
  for (int i = 0; i < atoi(words[4]); i++) CPU_SET(i, &processors);
  if (sched_setaffinity(0, sizeof processors, &processors) != 0) return perror("sched_setaffinity"), 1;

  dnnl_engine_t engine;
  dnnl_stream_t stream;
  CHECK(dnnl_engine_create(&engine, dnnl_cpu, 0));
  CHECK(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
  dnnl_memory_desc_t source = describe(2, m, k, dnnl_u8, dnnl_ab), any = describe(2, k, n, dnnl_s8, dnnl_format_tag_any),
                     plain = describe(2, k, n, dnnl_s8, dnnl_ba), bias = describe(2, 1, n, dnnl_f32, dnnl_ab),
                     target = describe(2, m, n, dnnl_u8, dnnl_ab), scales = describe(1, n, 0, dnnl_f32, dnnl_a);
  dnnl_primitive_attr_t attributes;
  CHECK(dnnl_primitive_attr_create(&attributes));
  CHECK(dnnl_primitive_attr_set_scales_mask(attributes, DNNL_ARG_WEIGHTS, 2));
  dnnl_primitive_desc_t chosen;
  CHECK(dnnl_matmul_primitive_desc_create(&chosen, engine, source, any, bias, target, attributes));
  dnnl_primitive_t product;
  CHECK(dnnl_primitive_create(&product, chosen));

  dnnl_memory_t weights = memory_of(plain, engine, 3);
  dnnl_memory_t packed = memory_of(dnnl_primitive_desc_query_md(chosen, dnnl_query_weights_md, 0), engine, 0);
  dnnl_primitive_desc_t how;
  dnnl_primitive_t reorder;
  CHECK(dnnl_reorder_primitive_desc_create(&how, plain, engine,
                                           dnnl_primitive_desc_query_md(chosen, dnnl_query_weights_md, 0), engine, NULL));
  CHECK(dnnl_primitive_create(&reorder, how));
  dnnl_exec_arg_t moved[] = {{DNNL_ARG_FROM, weights}, {DNNL_ARG_TO, packed}};
  CHECK(dnnl_primitive_execute(reorder, stream, 2, moved));

  dnnl_memory_t scale = memory_of(scales, engine, 0);
  void *values;
  CHECK(dnnl_memory_get_data_handle(scale, &values));
  for (dnnl_dim_t i = 0; i < n; i++) ((float *)values)[i] = 1e-3f + 1e-6f * (float)i;
  dnnl_exec_arg_t operands[] = {{DNNL_ARG_SRC, memory_of(source, engine, 5)},
                                {DNNL_ARG_WEIGHTS, packed},
                                {DNNL_ARG_BIAS, memory_of(bias, engine, 0)},
                                {DNNL_ARG_DST, memory_of(target, engine, 0)},
                                {DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, scale}};
  const char *implementation;
  CHECK(dnnl_primitive_desc_query(chosen, dnnl_query_impl_info_str, 0, &implementation));
  const dnnl_version_t *version = dnnl_version();
  printf("oneDNN %d.%d.%d %s\n", version->major, version->minor, version->patch, implementation);
  fflush(stdout);

  long runs;
  while (scanf("%ld", &runs) == 1) {
    double start = now();
    for (long i = 0; i < runs; i++) {
      CHECK(dnnl_primitive_execute(product, stream, 5, operands));
      CHECK(dnnl_stream_wait(stream));
    }
    printf("%.9f\n", now() - start);
    fflush(stdout);
  }
  return 0;
}
