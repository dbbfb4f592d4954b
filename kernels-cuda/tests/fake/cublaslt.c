// A stand-in for libcublasLt.so: plain loops behind the part of its interface that gpucheck uses, over the
// emulated device's memory, which is the host's. What the real one would refuse is refused: status 7 for
// objects, types or layouts other than those of a product of 8-bit integers, 15 for products of one row.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { kOk = 0, kInvalid = 7, kNotSupported = 15 };
enum { kCompute32I = 72, kF32 = 0, kI8 = 3, kI32 = 10, kTransA = 3, kOpT = 1, kMaxWorkspace = 1 };

typedef struct {
  char kind;
  int32_t type, scale_type, trans_a;
  uint64_t rows, columns, workspace;
  int64_t pitch;
} Object;

typedef struct {
  uint64_t data[8];
} Algorithm;

typedef struct {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
} Result;

static int alive = 0;

static int make(void** to, Object object) {
  Object* made = malloc(sizeof(Object));
  *made = object;
  *to = made;
  alive++;
  return kOk;
}

static int drop(Object* object, char kind) {
  if (!object || object->kind != kind) abort();
  object->kind = 0;
  free(object);
  alive--;
  return kOk;
}

// Objects that nobody has destroyed yet.
int requant_fake_alive(void) { return alive; }

size_t cublasLtGetVersion(void) { return 130100; }
int cublasLtCreate(void** to) { return make(to, (Object){.kind = 'h'}); }
int cublasLtDestroy(void* object) { return drop(object, 'h'); }

int cublasLtMatmulDescCreate(void** to, int compute, int scale_type) {
  if (compute != kCompute32I) return kInvalid;
  return make(to, (Object){.kind = 'd', .scale_type = scale_type});
}
int cublasLtMatmulDescDestroy(void* object) { return drop(object, 'd'); }
int cublasLtMatmulDescSetAttribute(void* object, int attribute, const void* value, size_t bytes) {
  Object* desc = object;
  if (desc->kind != 'd' || attribute != kTransA || bytes != 4) return kInvalid;
  memcpy(&desc->trans_a, value, 4);
  return kOk;
}

int cublasLtMatrixLayoutCreate(void** to, int type, uint64_t rows, uint64_t columns, int64_t pitch) {
  return make(to, (Object){.kind = 'l', .type = type, .rows = rows, .columns = columns, .pitch = pitch});
}
int cublasLtMatrixLayoutDestroy(void* object) { return drop(object, 'l'); }

int cublasLtMatmulPreferenceCreate(void** to) { return make(to, (Object){.kind = 'p'}); }
int cublasLtMatmulPreferenceDestroy(void* object) { return drop(object, 'p'); }
int cublasLtMatmulPreferenceSetAttribute(void* object, int attribute, const void* value, size_t bytes) {
  Object* preference = object;
  if (preference->kind != 'p' || attribute != kMaxWorkspace || bytes != 8) return kInvalid;
  memcpy(&preference->workspace, value, 8);
  return kOk;
}

static int fits(const Object* desc, const Object* a, const Object* b, const Object* d) {
  const int types = (desc->scale_type == kI32 && d->type == kI32) || (desc->scale_type == kF32 && d->type == kI8);
  return desc->kind == 'd' && a->kind == 'l' && b->kind == 'l' && d->kind == 'l' && desc->trans_a == kOpT && types &&
         a->type == kI8 && b->type == kI8 && a->rows == b->rows && d->rows == a->columns && d->columns == b->columns &&
         a->pitch >= (int64_t)a->rows && b->pitch >= (int64_t)b->rows && d->pitch >= (int64_t)d->rows;
}

// Two that work, between them one that needs too much memory and one that says it is no good.
int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference,
                                   int asked, Result* results, int* count) {
  *count = 0;
  if (((Object*)handle)->kind != 'h' || ((Object*)preference)->kind != 'p' || c != d) return kInvalid;
  if (!fits(desc, a, b, d)) return kInvalid;
  if (((Object*)b)->columns == 1) return kNotSupported;
  const uint64_t most = ((Object*)preference)->workspace;
  for (int i = 0; i < 4 && i < asked; i++) {
    memset(&results[i], 0, sizeof(Result));
    results[i].algorithm.data[0] = 1000 + i;
    results[i].workspace = i == 1 ? most + 1 : most;
    results[i].state = i == 2 ? kNotSupported : kOk;
    *count = i + 1;
  }
  return kOk;
}

int cublasLtMatmul(void* handle, void* desc, const void* alpha, const int8_t* x, void* a, const int8_t* y, void* b,
                   const void* beta, const void* c, void* c_layout, void* d, void* d_layout, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream) {
  const Object *of_a = a, *of_b = b, *of_d = d_layout;
  int32_t zero;
  memcpy(&zero, beta, 4);
  if (((Object*)handle)->kind != 'h' || !fits(desc, a, b, d_layout) || c != d || c_layout != d_layout) return kInvalid;
  if (zero != 0 || !stream || !workspace || !workspace_bytes || !algorithm) return kInvalid;
  if (algorithm->data[0] != 1000 && algorithm->data[0] != 1003) return kInvalid;
  float scale;
  int32_t factor;
  memcpy(&scale, alpha, 4);
  memcpy(&factor, alpha, 4);
  for (uint64_t column = 0; column < of_d->columns; column++) {
    for (uint64_t row = 0; row < of_d->rows; row++) {
      int32_t sum = 0;
      for (uint64_t k = 0; k < of_a->rows; k++) {
        sum += (int32_t)x[row * of_a->pitch + k] * y[column * of_b->pitch + k];
      }
      const uint64_t at = column * of_d->pitch + row;
      if (of_d->type == kI32) {
        ((int32_t*)d)[at] = factor * sum;
      } else {
        const float scaled = (float)sum * scale;
        const float limited = scaled < -128 ? -128 : scaled > 127 ? 127 : scaled;
        ((int8_t*)d)[at] = (int8_t)(limited < 0 ? limited - 0.5f : limited + 0.5f);
      }
    }
  }
  return kOk;
}
