/* llamba.h -- the public C interface of llamba_kernels.
 *
 * No torch, no CUDA types. Every operator takes one plain struct and returns a status; the sentence that explains a
 * failure is llamba_last_error(). Strides count elements. A pointer is device memory for *_cuda and host memory for
 * *_cpu. The *_cpu functions are in libllamba_cpu.so, the *_cuda functions in libllamba_cuda.so; the two libraries
 * share nothing but this header, so each has its own llamba_last_error.
 */
#ifndef LLAMBA_H_
#define LLAMBA_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LLAMBA_ABI_VERSION 4
#define LLAMBA_API __attribute__((visibility("default")))

typedef enum {
  LLAMBA_OK = 0,
  LLAMBA_VALUE_ERROR = 1,  /* a size, an index or a slot's state breaks a rule */
  LLAMBA_TYPE_ERROR = 2,   /* a dtype, a device or a layout breaks a rule */
  LLAMBA_CUDA_ERROR = 3,   /* the CUDA runtime refused */
  LLAMBA_MEMORY_ERROR = 4, /* memory ran out; a step that was open is to be reset */
} llamba_status;

typedef enum { LLAMBA_FLOAT32 = 0, LLAMBA_BFLOAT16 = 1, LLAMBA_FLOAT16 = 2 } llamba_dtype;

/* How mamba2_verify computes. Recurrent: a token's bits depend on its own path alone, whatever the window. Matmul: the
 * closed form on tensor cores, whose bits depend on the window, too; CUDA only. */
typedef enum { LLAMBA_RECURRENT = 0, LLAMBA_MATMUL = 1 } llamba_algorithm;

LLAMBA_API int llamba_abi_version(void);
/* The sentence of this thread's last failure, "" if none. Valid until this thread's next failure. */
LLAMBA_API const char* llamba_last_error(void);
/* The status of this thread's last failure. */
LLAMBA_API int llamba_last_status(void);
/* What libllamba_cuda.so was compiled for, such as "80 86 90a". */
LLAMBA_API const char* llamba_archs_cuda(void);

/* ---- CPU library: threads and instruction set ---------------------------------------------------------------- */

/* Runs body(begin, end, context) over [begin, end) in pieces of at least `grain`. Returns 0. Serial until set. */
typedef int (*llamba_parallel_for)(int64_t begin, int64_t end, int64_t grain,
                                   void (*body)(int64_t begin, int64_t end, void* context), void* context);
LLAMBA_API void llamba_set_parallel_for_cpu(llamba_parallel_for parallel_for);
/* "avx512bf16", "avx512", "avx2" or "generic": what the CPU kernels run as. LLAMBA_CPU_ISA, read when the
 * library loads, forces one; a name that is none, or a set that the processor lacks, leaves the best. */
LLAMBA_API const char* llamba_isa_cpu(void);

/* ---- cursor: which rows of a slot mean what ------------------------------------------------------------------ */

/* One cursor per model, shared by all layers. Slot s is the LLAMBA_CURSOR_HEADER + width-1 + capacity int32 at
 * data + s * slot_stride:
 *   position  committed tokens
 *   live      committed tokens that are not yet in the checkpoint
 *   fold      how many of the oldest live rows the open step folds into the checkpoint
 *   ntokens   tokens of the open step; 0: no step is open; -1: a step broke on the device, refused until reset
 *   table     physical row ids: width-1 conv-tail rows (-1: a zero row), then `live` live rows, then the free rows,
 *             then -1 up to the end. New tokens take the free rows in order.
 * The checkpoint is the state after position - live tokens; a slot is fresh (state zero) while that is 0. */
#define LLAMBA_CURSOR_HEADER 4
typedef struct {
  int32_t* data; /* [nslots, HEADER + width-1 + capacity] */
  int64_t nslots;
  int64_t slot_stride;
  int32_t width;    /* conv width, 2 to 4 */
  int32_t capacity; /* physical rows per slot */
} llamba_cursor;

/* Session constants; capacity must be at least width-1 + fold_every-1 + max_rollback + 2 * max_window. */
typedef struct {
  int32_t fold_every;   /* W: the checkpoint advances in multiples of it */
  int32_t max_rollback; /* committed tokens that may still be taken back */
  int32_t max_window;   /* most tokens in a step */
} llamba_session;

typedef struct {
  size_t size;           /* sizeof(this struct) as the caller knows it */
  llamba_cursor cursor;  /* written */
  const int32_t* slots;  /* [batch], unique; < 0: padding, skipped */
  const int32_t* prompt; /* [batch] tokens a prefill has put into the slot, or NULL: none (fresh) */
  int64_t batch;
  llamba_session session; /* read only with prompt */
} llamba_cursor_reset_args;

typedef struct {
  size_t size;
  llamba_cursor cursor;   /* written: fold, ntokens */
  const int32_t* slots;   /* [batch], unique; < 0: padding, skipped */
  const int32_t* ntokens; /* [batch], 1 to max_window */
  int64_t batch;
  llamba_session session;
} llamba_cursor_begin_args;

typedef struct {
  size_t size;
  llamba_cursor cursor;    /* written */
  const int32_t* slots;    /* [batch], unique; < 0: padding, skipped */
  const int32_t* accepted; /* [batch] input tokens that stay, 0 to ntokens */
  const int32_t* path;     /* [batch, >= accepted] which tokens stay, ascending; NULL: 0, 1, 2, ... */
  int64_t path_stride_batch;
  int64_t path_length; /* entries of a path; at least accepted */
  int64_t batch;
} llamba_cursor_commit_args;

typedef struct {
  size_t size;
  llamba_cursor cursor; /* written: position, live */
  const int32_t* slots; /* [batch], unique; < 0: padding, skipped */
  const int32_t* n;     /* [batch] committed tokens to take back, 0 to min(max_rollback, live) */
  int64_t batch;
  llamba_session session;
} llamba_cursor_rollback_args;

LLAMBA_API int llamba_cursor_reset_cpu(const llamba_cursor_reset_args* args);
LLAMBA_API int llamba_cursor_begin_cpu(const llamba_cursor_begin_args* args);
LLAMBA_API int llamba_cursor_commit_cpu(const llamba_cursor_commit_args* args);
LLAMBA_API int llamba_cursor_rollback_cpu(const llamba_cursor_rollback_args* args);
LLAMBA_API int llamba_cursor_reset_cuda(const llamba_cursor_reset_args* args, void* stream);
LLAMBA_API int llamba_cursor_begin_cuda(const llamba_cursor_begin_args* args, void* stream);
LLAMBA_API int llamba_cursor_commit_cuda(const llamba_cursor_commit_args* args, void* stream);
LLAMBA_API int llamba_cursor_rollback_cuda(const llamba_cursor_rollback_args* args, void* stream);

/* ---- mamba2_verify: conv + SSM of a Mamba-2 layer for the open step ------------------------------------------
 * Dimensions without a stride are dense. What is written overlaps nothing else. The cursor is only read. */

typedef struct {
  size_t size;
  llamba_dtype dtype;            /* xBC, dt, conv_weight, conv_bias, rows, dt_rows, out */
  llamba_dtype checkpoint_dtype; /* 16 bits: the running state is rounded after each fold_every-th token */
  llamba_algorithm algorithm;
  int32_t fold_every;         /* W of the session; with a float32 checkpoint only checked */
  int32_t batch, max_ntokens; /* max_ntokens >= ntokens of every slot */
  int32_t nheads, headdim;
  int32_t dstate;                    /* a multiple of 16 up to 256 */
  int32_t x_heads, B_heads, C_heads; /* each divides nheads; head h uses x head h / (nheads / x_heads), ... */
  const void* xBC;                   /* [batch, max_ntokens, conv_dim], raw in_proj columns: x, B, C */
  int64_t xBC_stride_batch, xBC_stride_token;
  const void* dt; /* [batch, max_ntokens, nheads], raw: before bias and softplus */
  int64_t dt_stride_batch, dt_stride_token;
  const void* conv_weight; /* [conv_dim, width] */
  int64_t conv_weight_stride_channel, conv_weight_stride_tap;
  const void* conv_bias; /* [conv_dim] or NULL: zero */
  const float* A;        /* [nheads], negative: -exp(A_log) */
  const float* D;        /* [nheads] or NULL: zero */
  const float* dt_bias;  /* [nheads] or NULL: zero */
  void* checkpoint;      /* [nslots, nheads, headdim, dstate], in/out: written only where fold > 0 */
  int64_t checkpoint_stride_slot, checkpoint_stride_head, checkpoint_stride_dim;
  void* rows; /* [nslots, capacity, conv_dim], in/out: the new tokens' rows are written */
  int64_t rows_stride_slot, rows_stride_row;
  void* dt_rows; /* [nslots, capacity, nheads], in/out: as rows */
  int64_t dt_rows_stride_slot, dt_rows_stride_row;
  llamba_cursor cursor; /* read: every slot must have an open step */
  const int32_t* slots; /* [batch], unique; < 0: padding */
  /* [batch, max_ntokens]: token i of a step follows token parents[i] < i of it, or the committed tokens if that is -1.
   * NULL: token i follows token i - 1. */
  const int32_t* parents;
  int64_t parents_stride_batch;
  void* out; /* [batch, max_ntokens, nheads, headdim], written; zero beyond ntokens and for padding */
  int64_t out_stride_batch, out_stride_token, out_stride_head;
} llamba_mamba2_verify_args;

LLAMBA_API int llamba_mamba2_verify_cpu(const llamba_mamba2_verify_args* args);
LLAMBA_API int llamba_mamba2_verify_cuda(const llamba_mamba2_verify_args* args, void* stream);

/* ---- materialize: the state of a Mamba-2 layer at the current position, without changing anything ----------------
 * Fields as in llamba_mamba2_verify_args. No slot may have an open step. */

typedef struct {
  size_t size;
  llamba_dtype dtype, checkpoint_dtype;
  int32_t fold_every;
  int32_t batch, nheads, headdim, dstate;
  int32_t x_heads, B_heads, C_heads;
  const void* conv_weight;
  int64_t conv_weight_stride_channel, conv_weight_stride_tap;
  const void* conv_bias; /* or NULL */
  const float* A;
  const float* dt_bias; /* or NULL */
  const void* checkpoint;
  int64_t checkpoint_stride_slot, checkpoint_stride_head, checkpoint_stride_dim;
  const void* rows;
  int64_t rows_stride_slot, rows_stride_row;
  const void* dt_rows;
  int64_t dt_rows_stride_slot, dt_rows_stride_row;
  llamba_cursor cursor; /* read */
  const int32_t* slots; /* [batch], unique; < 0: padding */
  float* state;         /* [batch, nheads, headdim, dstate], written; zero for padding */
  int64_t state_stride_batch, state_stride_head, state_stride_dim;
  void* tail; /* [batch, width-1, conv_dim] raw rows before the position, oldest first, written; zero where none */
  int64_t tail_stride_batch, tail_stride_row;
} llamba_materialize_args;

LLAMBA_API int llamba_materialize_cpu(const llamba_materialize_args* args);
LLAMBA_API int llamba_materialize_cuda(const llamba_materialize_args* args, void* stream);

/* ---- conv1d_verify: conv and SiLU of a Mamba-1 layer for the open step, whose other inputs depend on them -----------
 * Fields as in llamba_mamba2_verify_args. out = SiLU(conv + bias), rounded to the dtype. */

typedef struct {
  size_t size;
  llamba_dtype dtype;         /* x, conv_weight, conv_bias, rows, out */
  int32_t batch, max_ntokens; /* max_ntokens >= ntokens of every slot */
  int32_t nheads, headdim;    /* of out */
  int32_t x_heads;            /* divides nheads; head h of out reads x head h / (nheads / x_heads) */
  const void* x;              /* [batch, max_ntokens, x_heads * headdim], raw */
  int64_t x_stride_batch, x_stride_token;
  const void* conv_weight; /* [nheads * headdim, width] */
  int64_t conv_weight_stride_channel, conv_weight_stride_tap;
  const void* conv_bias; /* [nheads * headdim] or NULL: zero */
  void* rows;            /* [nslots, capacity, x_heads * headdim], in/out: the new tokens' x is written */
  int64_t rows_stride_slot, rows_stride_row;
  llamba_cursor cursor;   /* read: every slot must have an open step */
  const int32_t* slots;   /* [batch], unique; < 0: padding */
  const int32_t* parents; /* [batch, max_ntokens], an earlier token or -1, the committed ones; NULL: a chain */
  int64_t parents_stride_batch;
  void* out; /* [batch, max_ntokens, nheads * headdim], written; zero beyond ntokens and for padding */
  int64_t out_stride_batch, out_stride_token;
} llamba_conv1d_verify_args;

LLAMBA_API int llamba_conv1d_verify_cpu(const llamba_conv1d_verify_args* args);
LLAMBA_API int llamba_conv1d_verify_cuda(const llamba_conv1d_verify_args* args, void* stream);

/* ---- mamba1_verify: SSM of a Mamba-1 layer for the open step ------------------------------------------------------
 *   dt = softplus(dt + dt_bias);  state = exp(dt A) state + (dt x) B;  out = (state . C + D x) * SiLU(z)
 * per channel, in float32, rounded once. Fields as in llamba_mamba2_verify_args. */

typedef struct {
  size_t size;
  llamba_dtype dtype;            /* x, dt, B, C, z, x_rows, dt_rows, B_rows, out */
  llamba_dtype checkpoint_dtype; /* 16 bits: the running state is rounded after each fold_every-th token */
  int32_t fold_every;            /* W of the session; with a float32 checkpoint only checked */
  int32_t batch, max_ntokens;    /* max_ntokens >= ntokens of every slot */
  int32_t d_inner;               /* channels */
  int32_t dstate;                /* a multiple of 16 up to 64 */
  int32_t B_heads, C_heads;      /* each divides d_inner; channel c reads B head c / (d_inner / B_heads), ... */
  const void* x;                 /* [batch, max_ntokens, d_inner], after the conv */
  int64_t x_stride_batch, x_stride_token;
  const void* dt; /* [batch, max_ntokens, d_inner], raw: before bias and softplus */
  int64_t dt_stride_batch, dt_stride_token;
  const void* B; /* [batch, max_ntokens, B_heads * dstate] */
  int64_t B_stride_batch, B_stride_token;
  const void* C; /* [batch, max_ntokens, C_heads * dstate] */
  int64_t C_stride_batch, C_stride_token;
  const void* z; /* [batch, max_ntokens, d_inner] or NULL: no gate */
  int64_t z_stride_batch, z_stride_token;
  const float* A; /* [d_inner, dstate], negative: -exp(A_log) */
  int64_t A_stride_channel;
  const float* D;       /* [d_inner] or NULL: zero */
  const float* dt_bias; /* [d_inner] or NULL: zero */
  void* checkpoint;     /* [nslots, d_inner, dstate], in/out: written only where fold > 0 */
  int64_t checkpoint_stride_slot, checkpoint_stride_channel;
  void* x_rows; /* [nslots, capacity, d_inner], in/out: the new tokens' x is written */
  int64_t x_rows_stride_slot, x_rows_stride_row;
  void* dt_rows; /* [nslots, capacity, d_inner], in/out: dt, as x_rows */
  int64_t dt_rows_stride_slot, dt_rows_stride_row;
  void* B_rows; /* [nslots, capacity, B_heads * dstate], in/out: B, as x_rows */
  int64_t B_rows_stride_slot, B_rows_stride_row;
  llamba_cursor cursor;   /* read: every slot must have an open step */
  const int32_t* slots;   /* [batch], unique; < 0: padding */
  const int32_t* parents; /* [batch, max_ntokens], an earlier token or -1, the committed ones; NULL: a chain */
  int64_t parents_stride_batch;
  void* out; /* [batch, max_ntokens, d_inner], written; zero beyond ntokens and for padding */
  int64_t out_stride_batch, out_stride_token;
} llamba_mamba1_verify_args;

LLAMBA_API int llamba_mamba1_verify_cpu(const llamba_mamba1_verify_args* args);
LLAMBA_API int llamba_mamba1_verify_cuda(const llamba_mamba1_verify_args* args, void* stream);

/* ---- mamba1_materialize: the state of a Mamba-1 layer at the current position, without changing anything ------------
 * Fields as in llamba_mamba1_verify_args. No slot may have an open step. state_import takes what it gives, with
 * nheads 1. */

typedef struct {
  size_t size;
  llamba_dtype dtype, checkpoint_dtype;
  int32_t fold_every;
  int32_t batch, d_inner, dstate, B_heads;
  int32_t x_dim;  /* channels of rows */
  const float* A; /* [d_inner, dstate] */
  int64_t A_stride_channel;
  const float* dt_bias; /* or NULL */
  const void* checkpoint;
  int64_t checkpoint_stride_slot, checkpoint_stride_channel;
  const void* rows; /* [nslots, capacity, x_dim], of conv1d_verify */
  int64_t rows_stride_slot, rows_stride_row;
  const void* x_rows;
  int64_t x_rows_stride_slot, x_rows_stride_row;
  const void* dt_rows;
  int64_t dt_rows_stride_slot, dt_rows_stride_row;
  const void* B_rows;
  int64_t B_rows_stride_slot, B_rows_stride_row;
  llamba_cursor cursor; /* read */
  const int32_t* slots; /* [batch], unique; < 0: padding */
  float* state;         /* [batch, d_inner, dstate], written; zero for padding */
  int64_t state_stride_batch, state_stride_channel;
  void* tail; /* [batch, width-1, x_dim] raw rows before the position, oldest first, written; zero where none */
  int64_t tail_stride_batch, tail_stride_row;
} llamba_mamba1_materialize_args;

LLAMBA_API int llamba_mamba1_materialize_cpu(const llamba_mamba1_materialize_args* args);
LLAMBA_API int llamba_mamba1_materialize_cuda(const llamba_mamba1_materialize_args* args, void* stream);

/* ---- state_import: what materialize gave, into slots that cursor_reset(prompt = position, fold_every 1,
 * max_rollback 0) has prepared ------------------------------------------------------------------------------------- */

typedef struct {
  size_t size;
  llamba_dtype dtype, checkpoint_dtype; /* of tail and rows, and of the checkpoint */
  int32_t batch, nheads, headdim, dstate, conv_dim;
  const float* state; /* [batch, nheads, headdim, dstate] */
  int64_t state_stride_batch, state_stride_head, state_stride_dim;
  const void* tail; /* [batch, width-1, conv_dim] */
  int64_t tail_stride_batch, tail_stride_row;
  void* checkpoint; /* [nslots, nheads, headdim, dstate], written: rounded to its dtype; not for a slot at position 0 */
  int64_t checkpoint_stride_slot, checkpoint_stride_head, checkpoint_stride_dim;
  void* rows; /* [nslots, capacity, conv_dim], written: the rows of the conv tail */
  int64_t rows_stride_slot, rows_stride_row;
  llamba_cursor cursor; /* read: no slot may have an open step or live rows (CUDA: such a slot is skipped) */
  const int32_t* slots; /* [batch], unique; < 0: padding */
} llamba_state_import_args;

LLAMBA_API int llamba_state_import_cpu(const llamba_state_import_args* args);
LLAMBA_API int llamba_state_import_cuda(const llamba_state_import_args* args, void* stream);

/* ---- slot_copy: slots of a cursor with everything that its layers keep for them ----------------------------------- */

#define LLAMBA_MAX_DIMS 8
typedef struct {
  void* data; /* [nslots, ...] */
  int32_t element_size;
  int32_t ndim; /* 1 to LLAMBA_MAX_DIMS */
  int64_t sizes[LLAMBA_MAX_DIMS], strides[LLAMBA_MAX_DIMS];
  int32_t token_dim; /* only the first `position` entries of this dimension are copied; -1: all */
} llamba_slot_buffer;

typedef struct {
  size_t size;
  llamba_cursor cursor;              /* written */
  size_t buffer_size;                /* sizeof(llamba_slot_buffer) as the caller knows it */
  const llamba_slot_buffer* buffers; /* [nbuffers], written */
  int64_t nbuffers;
  const int32_t* src; /* [batch]; < 0: padding, skipped */
  const int32_t* dst; /* [batch], unique, none of them a source; CUDA: broken (ntokens -1) if src is refused on a CPU */
  int64_t batch;
} llamba_slot_copy_args;

LLAMBA_API int llamba_slot_copy_cpu(const llamba_slot_copy_args* args);
LLAMBA_API int llamba_slot_copy_cuda(const llamba_slot_copy_args* args, void* stream);

/* ---- selective_scan: Mamba-1's recurrence over whole sequences, and its gradients -----------------------------
 *   dt = softplus(dt + dt_bias);  state = exp(dt A) state + (dt x) B;  y = (state . C + D x) * silu(z)
 * per channel; fp32 inside. Last strides are 1; dimensions without a stride are dense. What is written overlaps
 * nothing else. */

#define LLAMBA_SCAN_CHUNK 64 /* tokens from one state that the forward keeps for the backward to the next */
typedef struct {
  size_t size;
  llamba_dtype dtype;       /* x, dt, B, C, z, y */
  int32_t dt_softplus;      /* 0: dt = dt + dt_bias */
  int64_t batch, length;    /* >= 0 */
  int64_t d_inner, dstate;  /* dstate up to 256 */
  int64_t B_heads, C_heads; /* each divides d_inner; channel c reads head c / (d_inner / B_heads), ... */
  const void* x;            /* [batch, length, d_inner] */
  int64_t x_stride_batch, x_stride_token;
  const void* dt; /* [batch, length, d_inner], raw */
  int64_t dt_stride_batch, dt_stride_token;
  const float* A; /* [d_inner, dstate], negative */
  int64_t A_stride_channel;
  const void* B; /* [batch, length, B_heads * dstate] */
  int64_t B_stride_batch, B_stride_token;
  const void* C; /* [batch, length, C_heads * dstate] */
  int64_t C_stride_batch, C_stride_token;
  const float* D; /* [d_inner] or NULL: zero */
  const void* z;  /* [batch, length, d_inner] or NULL: no gate */
  int64_t z_stride_batch, z_stride_token;
  const float* dt_bias;       /* [d_inner] or NULL: zero */
  const float* initial_state; /* [nsequences, d_inner, dstate] or NULL: zero */
  int64_t initial_state_stride_batch, initial_state_stride_channel;
  const int32_t* cu_seqlens; /* [nsequences + 1] ascending from 0 to length: sequence s of the one batch entry is tokens
                                cu_seqlens[s] to cu_seqlens[s + 1] - 1. NULL: every batch entry is a sequence */
  int64_t nsequences;        /* read only with cu_seqlens; else batch */
  void* y;                   /* [batch, length, d_inner], written */
  int64_t y_stride_batch, y_stride_token;
  float* final_state; /* [nsequences, d_inner, dstate], written, or NULL */
  int64_t final_state_stride_batch, final_state_stride_channel;
  int64_t state_every; /* read only with states; >= 1 */
  float* states;       /* [batch, length / state_every, d_inner, dstate], written: the states after tokens state_every,
                          2 state_every, ... of a batch entry, or NULL */
  int64_t states_stride_batch, states_stride_state, states_stride_channel;
  /* [batch, (length - 1) / LLAMBA_SCAN_CHUNK, dstate, d_inner], written but where a sequence begins: the states before
   * tokens CHUNK, 2 CHUNK, ... of a batch entry, for the backward; or NULL */
  float* chunk_states;
} llamba_selective_scan_args;

/* Gradients are sums in a fixed order, whatever the threads. Those of the 16-bit inputs are rounded once. */
typedef struct {
  size_t size;
  llamba_selective_scan_args scan; /* the forward's; inputs and chunk_states are read, y and the other states not */
  const void* grad_y;              /* [batch, length, d_inner] */
  int64_t grad_y_stride_batch, grad_y_stride_token;
  const float* grad_final_state; /* [nsequences, d_inner, dstate] or NULL: zero */
  int64_t grad_final_state_stride_batch, grad_final_state_stride_channel;
  const float* grad_states; /* [batch, length / scan.state_every, d_inner, dstate] or NULL: zero */
  int64_t grad_states_stride_batch, grad_states_stride_state, grad_states_stride_channel;
  void* grad_x; /* [batch, length, d_inner], written, as all that follow */
  int64_t grad_x_stride_batch, grad_x_stride_token;
  void* grad_dt; /* [batch, length, d_inner] */
  int64_t grad_dt_stride_batch, grad_dt_stride_token;
  float* grad_A; /* [d_inner, dstate] */
  void* grad_B;  /* [batch, length, B_heads * dstate] */
  int64_t grad_B_stride_batch, grad_B_stride_token;
  void* grad_C; /* [batch, length, C_heads * dstate] */
  int64_t grad_C_stride_batch, grad_C_stride_token;
  float* grad_D; /* [d_inner] or NULL: not wanted */
  void* grad_z;  /* [batch, length, d_inner]; NULL without z */
  int64_t grad_z_stride_batch, grad_z_stride_token;
  float* grad_dt_bias;       /* [d_inner] or NULL: not wanted */
  float* grad_initial_state; /* [nsequences, d_inner, dstate] or NULL: not wanted */
  int64_t grad_initial_state_stride_batch, grad_initial_state_stride_channel;
} llamba_selective_scan_backward_args;

LLAMBA_API int llamba_selective_scan_cpu(const llamba_selective_scan_args* args);
LLAMBA_API int llamba_selective_scan_backward_cpu(const llamba_selective_scan_backward_args* args);

/* ---- gated_rms_norm: RMSNorm over groups of x * silu(z), times weight ---------------------------------------- */

typedef struct {
  size_t size;
  llamba_dtype dtype;            /* x, z, weight, out */
  int64_t batch, ntokens, width; /* >= 0 */
  int64_t group_size;            /* divides width; each group has its own norm */
  float eps;                     /* > 0 */
  const void* x;                 /* [batch, ntokens, width] */
  int64_t x_stride_batch, x_stride_token;
  const void* z; /* [batch, ntokens, width] or NULL: no gate */
  int64_t z_stride_batch, z_stride_token;
  const void* weight; /* [width] */
  void* out;          /* [batch, ntokens, width], written; may be x or z */
  int64_t out_stride_batch, out_stride_token;
} llamba_gated_rms_norm_args;

LLAMBA_API int llamba_gated_rms_norm_cpu(const llamba_gated_rms_norm_args* args);
LLAMBA_API int llamba_gated_rms_norm_cuda(const llamba_gated_rms_norm_args* args, void* stream);

/* ---- rms_norm: x / sqrt(mean(x^2) + eps) * weight, after an addition if there is a residual ------------------- */

typedef struct {
  size_t size;
  llamba_dtype dtype;                    /* x, weight, residual, out */
  int64_t batch, ntokens, nheads, width; /* >= 0; each row of width has its own norm */
  float eps;                             /* > 0 */
  const void* x;                         /* [batch, ntokens, nheads, width] */
  int64_t x_stride_batch, x_stride_token, x_stride_head;
  const void* weight; /* [width] */
  void* residual;     /* [batch, ntokens, nheads, width], in/out: x is added, and the sum is normed; or NULL: x is */
  int64_t residual_stride_batch, residual_stride_token, residual_stride_head;
  void* out; /* [batch, ntokens, nheads, width], written; may be x */
  int64_t out_stride_batch, out_stride_token, out_stride_head;
} llamba_rms_norm_args;

LLAMBA_API int llamba_rms_norm_cpu(const llamba_rms_norm_args* args);
LLAMBA_API int llamba_rms_norm_cuda(const llamba_rms_norm_args* args, void* stream);

/* ---- rope: rotary position embedding ---------------------------------------------------------------------------- */

typedef struct {
  size_t size;
  llamba_dtype dtype;                       /* x, out */
  int64_t batch, ntokens, nheads, head_dim; /* >= 0 */
  int64_t rotary_dim;                       /* even, at most head_dim; the elements after it are copied */
  int64_t npositions;                       /* >= 0 */
  int32_t interleaved;                      /* pairs are 2 i and 2 i + 1; 0: i and i + rotary_dim / 2 */
  const void* x;                            /* [batch, ntokens, nheads, head_dim] */
  int64_t x_stride_batch, x_stride_token, x_stride_head;
  const float* cos; /* [npositions, rotary_dim / 2] */
  int64_t cos_stride_position;
  const float* sin; /* [npositions, rotary_dim / 2] */
  int64_t sin_stride_position;
  const int32_t* positions; /* [batch, ntokens], below npositions (CUDA: else as padding); < 0: padding */
  int64_t positions_stride_batch;
  void* out; /* [batch, ntokens, nheads, head_dim], written, zero for padding; may be x */
  int64_t out_stride_batch, out_stride_token, out_stride_head;
} llamba_rope_args;

LLAMBA_API int llamba_rope_cpu(const llamba_rope_args* args);
LLAMBA_API int llamba_rope_cuda(const llamba_rope_args* args, void* stream);

/* ---- silu_mul: silu(gate) * up --------------------------------------------------------------------------------- */

typedef struct {
  size_t size;
  llamba_dtype dtype;            /* gate, up, out */
  int64_t batch, ntokens, width; /* >= 0 */
  const void* gate;              /* [batch, ntokens, width] */
  int64_t gate_stride_batch, gate_stride_token;
  const void* up; /* [batch, ntokens, width] */
  int64_t up_stride_batch, up_stride_token;
  void* out; /* [batch, ntokens, width], written; may be gate or up */
  int64_t out_stride_batch, out_stride_token;
} llamba_silu_mul_args;

LLAMBA_API int llamba_silu_mul_cpu(const llamba_silu_mul_args* args);
LLAMBA_API int llamba_silu_mul_cuda(const llamba_silu_mul_args* args, void* stream);

/* ---- skinny_linear: x weight^T + bias for a few rows ---------------------------------------------------------- */

typedef struct {
  size_t size;
  llamba_dtype dtype;                                /* x, weight, bias, out */
  int64_t batch, ntokens, in_features, out_features; /* >= 0 */
  const void* x;                                     /* [batch, ntokens, in_features] */
  int64_t x_stride_batch, x_stride_token;
  const void* weight; /* [out_features, in_features] */
  int64_t weight_stride_row;
  const void* bias; /* [out_features] or NULL: zero */
  void* out;        /* [batch, ntokens, out_features], written; overlaps nothing else */
  int64_t out_stride_batch, out_stride_token;
} llamba_skinny_linear_args;

LLAMBA_API int llamba_skinny_linear_cpu(const llamba_skinny_linear_args* args);

/* args[count] that do not read what others of them write, such as the projections of one x, on one set of threads: the
 * bits are those of count calls. */
#define LLAMBA_MAX_LINEARS 8
LLAMBA_API int llamba_skinny_linear_many_cpu(const llamba_skinny_linear_args* args, int64_t count);

/* ---- attention_step: attention of a layer for the open step ------------------------------------------------------
 * A token of the step sees the slot's `position` committed tokens, then its path: in a chain the step's tokens up to
 * itself, in a tree its ancestors and itself; of all these, with a sliding window, the last `sliding_window`. Of the
 * cursor the header alone is read. What is written overlaps nothing else. */

typedef struct {
  size_t size;
  llamba_dtype dtype;         /* q, k, v, k_cache, v_cache, out */
  int64_t batch, max_ntokens; /* >= 0; max_ntokens >= ntokens of every slot */
  int64_t nheads, kv_heads;   /* kv_heads divides nheads; head h reads kv head h / (nheads / kv_heads) */
  int64_t head_dim;           /* 1 to 256 */
  int64_t nslots, max_tokens; /* >= 0; position + ntokens <= max_tokens of every slot */
  float scale;                /* finite; of the scores */
  int64_t sliding_window;     /* >= 0; tokens that a token sees, itself included; 0: all */
  const void* q;              /* [batch, max_ntokens, nheads, head_dim], after RoPE */
  int64_t q_stride_batch, q_stride_token, q_stride_head;
  const void* k; /* [batch, max_ntokens, kv_heads, head_dim], after RoPE */
  int64_t k_stride_batch, k_stride_token, k_stride_head;
  const void* v; /* [batch, max_ntokens, kv_heads, head_dim] */
  int64_t v_stride_batch, v_stride_token, v_stride_head;
  void* k_cache; /* [nslots, kv_heads, max_tokens, head_dim], in/out: written from position to position + ntokens */
  int64_t k_cache_stride_slot, k_cache_stride_head, k_cache_stride_token;
  void* v_cache; /* [nslots, kv_heads, max_tokens, head_dim], in/out: as k_cache */
  int64_t v_cache_stride_slot, v_cache_stride_head, v_cache_stride_token;
  const int32_t* cursor; /* [nslots, at least HEADER]: every slot must have an open step */
  int64_t cursor_stride_slot;
  const int32_t* slots;   /* [batch], unique; < 0: padding */
  const int32_t* parents; /* [batch, max_ntokens], an earlier token or -1, the committed ones; NULL: a chain */
  int64_t parents_stride_batch;
  void* out; /* [batch, max_ntokens, nheads, head_dim], written; zero beyond ntokens and for padding */
  int64_t out_stride_batch, out_stride_token, out_stride_head;
} llamba_attention_step_args;

LLAMBA_API int llamba_attention_step_cpu(const llamba_attention_step_args* args);

/* ---- kv_compact: after a tree step, the accepted path's keys and values move to where a chain's would lie -------- */

typedef struct {
  size_t size;
  llamba_dtype dtype;                             /* of every cache */
  int64_t batch, max_window;                      /* >= 0 */
  int64_t nslots, kv_heads, max_tokens, head_dim; /* >= 0 */
  int64_t ncaches;                                /* >= 0, keys and values alike */
  void* const* caches;                            /* [ncaches] of [nslots, kv_heads, max_tokens, head_dim], in/out */
  const int64_t* cache_strides;                   /* [ncaches, 3]: slot, head, token */
  const int32_t* cursor;                          /* [nslots, at least HEADER]: every slot must have an open step */
  int64_t cursor_stride_slot;
  const int32_t* slots;    /* [batch], unique; < 0: padding */
  const int32_t* accepted; /* [batch], 0 to ntokens */
  const int32_t* path;     /* [batch, max_window], the first `accepted` strictly increasing, below ntokens */
  int64_t path_stride_batch;
} llamba_kv_compact_args;

LLAMBA_API int llamba_kv_compact_cpu(const llamba_kv_compact_args* args);

/* ---- selective_state_update: one read-update-write step, or several, on states in slots ------------------------- */

/* Elements of one of the three dtypes at any strides; a stride of 0 repeats an element. data NULL: absent. */
typedef struct {
  const void* data;
  int64_t strides[4];
  llamba_dtype dtype;
} llamba_operand;

/* int32 or int64 numbers [rows, columns]. data NULL: absent. */
typedef struct {
  const void* data;
  int64_t strides[2];
  int64_t columns;
  int32_t is_int64;
} llamba_indices;

typedef struct {
  size_t size;
  llamba_dtype dtype;       /* x, z, out */
  llamba_dtype state_dtype; /* state, buffer */
  int64_t batch;            /* sequences */
  int64_t ntokens;          /* of each sequence; with cu_seqlens: of all sequences together */
  int32_t nheads, headdim;
  int32_t dstate;               /* 1 to 256 */
  int32_t ngroups;              /* of B and C, divides nheads */
  int32_t dt_softplus;          /* 0 or 1 */
  int32_t disable_state_update; /* 0 or 1 */
  /* [batch, ntokens, nheads, headdim]; with cu_seqlens the batch stride is not read */
  llamba_operand x, dt;
  llamba_operand z;          /* or absent: no gate */
  llamba_operand B, C;       /* [batch, ntokens, ngroups, dstate] */
  llamba_operand A;          /* [1, nheads, headdim, dstate]; the last stride is 0 or 1 */
  llamba_operand D, dt_bias; /* [1, 1, nheads, headdim] or absent */
  void* out;                 /* as x, written */
  int64_t out_strides[4];
  /* [nslots, nheads, headdim, dstate]; where a sequence starts, and written where it ends */
  void* state;
  int64_t nslots, state_stride_slot, state_stride_head, state_stride_dim;
  int64_t pad_slot_id;  /* an index that is this, or negative: no state, starts at zero and is not stored */
  llamba_indices slots; /* [batch, 1 or more]: a sequence's slot; absent: sequence i has slot i */
  /* [batch, 1]: where its last state goes; [batch, more], or with accepted: where each token's goes. Absent: slots */
  llamba_indices dst_slots;
  llamba_indices accepted;   /* [batch, 1] or absent: the sequence starts from column max(accepted - 1, 0) of slots */
  llamba_indices cu_seqlens; /* [batch + 1, 1] or absent: sequence i has tokens cu_seqlens[i] to cu_seqlens[i + 1] */
  /* [nbuffer, buffer_steps, nheads, headdim, dstate] or NULL: the state after each token, written */
  void* buffer;
  int64_t nbuffer, buffer_steps;
  int64_t buffer_stride_row, buffer_stride_step, buffer_stride_head, buffer_stride_dim;
  llamba_indices buffer_rows; /* [batch, 1] or absent: as slots */
  /* [batch, ntokens] or absent: token i > 0 starts from the buffer's state after token parents[i] if that is 0 to i - 1,
   * else from the state that token i - 1 left */
  llamba_indices parents;
} llamba_selective_state_update_args;

LLAMBA_API int llamba_selective_state_update_cpu(const llamba_selective_state_update_args* args);
/* Indices that the CPU refuses are padding. */
LLAMBA_API int llamba_selective_state_update_cuda(const llamba_selective_state_update_args* args, void* stream);

/* ---- argmax: the lowest index of each row's largest logit ------------------------------------------------------- */

typedef struct {
  size_t size;
  llamba_dtype dtype;     /* logits */
  int64_t batch, ntokens; /* >= 0 */
  int64_t vocab;          /* >= 1 */
  const void* logits;     /* [batch, ntokens, vocab] */
  int64_t logits_stride_batch, logits_stride_token;
  int64_t* out; /* [batch, ntokens], written */
  int64_t out_stride_batch, out_stride_token;
} llamba_argmax_args;

LLAMBA_API int llamba_argmax_cpu(const llamba_argmax_args* args);

/* ---- speculative_accept: how many tokens of a window stay, and the token that follows -------------------------- */

typedef struct {
  size_t size;
  llamba_dtype dtype;        /* logits */
  int64_t batch;             /* >= 0 */
  int64_t max_window, vocab; /* 1 to INT32_MAX */
  double temperature;        /* > 0, finite */
  const void* logits;        /* [batch, max_window, vocab], row i for the token after input i; input 0 is pending */
  int64_t logits_stride_batch, logits_stride_token;
  const int64_t* drafts; /* [batch, max_window - 1]: inputs 1, 2, ...; the first ntokens - 1 are read */
  int64_t drafts_stride_batch;
  const int32_t* ntokens;   /* [batch], 1 to max_window */
  const float* draft_probs; /* [batch, max_window - 1, vocab] or NULL: drafts were certain */
  int64_t draft_probs_stride_batch, draft_probs_stride_token;
  const double* uniforms; /* [batch, max_window] in [0, 1), the last for the next token, or NULL: greedy */
  int64_t uniforms_stride_batch;
  /* CUDA: accepted 0 and next_token -1 for a sequence whose data, as far as its decision reads it, breaks a rule. */
  int32_t* accepted;   /* [batch], written: inputs that stay, the pending one included */
  int64_t* next_token; /* [batch], written */
} llamba_speculative_accept_args;

LLAMBA_API int llamba_speculative_accept_cpu(const llamba_speculative_accept_args* args);
LLAMBA_API int llamba_speculative_accept_cuda(const llamba_speculative_accept_args* args, void* stream);

/* ---- causal_conv1d_update: causal depthwise conv of a few tokens, from a state of raw inputs that moves on ------
 * out[t] = act(bias + sum over j of weight[j] * input[t - (width-1) + j]), inputs before token 0 from the state. A
 * token of x is rounded to the state's dtype before use, so K tokens are K calls of one. The state in one of three ways:
 *   shifted  neither cache_seqlens nor accepted: its last width-1 columns precede x; it becomes the last state_len
 *            columns of itself followed by x
 *   ring     cache_seqlens: token t goes to column (cache_seqlens + t) % state_len; the width-1 columns before precede x
 *   drafts   accepted: of the tokens of the call before, so many count. Columns accepted-1 to accepted+width-3 precede
 *            x; the last width-2 of them, then x, become columns 0 to width-3 + tokens */

typedef struct {
  size_t size;
  llamba_dtype dtype;        /* x, out */
  llamba_dtype state_dtype;  /* conv_state, windows */
  llamba_dtype weight_dtype; /* weight, bias */
  int64_t batch, dim;        /* >= 0 */
  int64_t ntokens;           /* >= 0: of every sequence; with query_start: of all together */
  int64_t nslots, state_len; /* nslots >= 0, state_len >= width - 1 */
  int64_t nblocks;           /* >= 1: slots of a sequence */
  int64_t nwindows;          /* >= 0; 0: windows are not kept */
  int64_t window_tokens;     /* >= tokens of every sequence, if there are windows */
  int32_t width;             /* 2 to 4 */
  int32_t silu;              /* act; 0: none */
  int32_t pad_slot;          /* sequences of this slot are padding, as those of slots < 0 */
  int32_t parents_are_int64;
  const void* x; /* [batch, dim, ntokens]; with query_start [dim, ntokens] */
  int64_t x_stride_batch, x_stride_channel, x_stride_token;
  void* conv_state; /* [nslots, dim, state_len], in/out; slots of padding and of no sequence are not touched */
  int64_t conv_state_stride_slot, conv_state_stride_channel, conv_state_stride_token;
  const void* weight; /* [dim, width] */
  int64_t weight_stride_channel, weight_stride_tap;
  const void* bias;             /* [dim] or NULL: zero */
  const int32_t* cache_seqlens; /* [batch] or NULL */
  const int32_t* slots;         /* [batch, nblocks], none written twice, or NULL: 0, 1, 2, ... */
  int64_t slots_stride_batch;
  const int32_t* accepted;     /* [batch], >= 1, or NULL */
  const int32_t* query_start;  /* [batch + 1], not descending, 0 to ntokens, or NULL */
  const int32_t* source_block; /* [batch], which of its slots a sequence's state is read from, or NULL: 0 */
  const int32_t* target_block; /* [batch], and which it is written to, or NULL: 0; both NULL with cache_seqlens */
  const void* parents;         /* [batch, >= tokens] int32 or int64: token i > 0 follows token parents[i] < i, or what
                                  precedes x if that is -1; of token 0 not read. NULL: a chain. The state moves as by a
                                  chain either way */
  int64_t parents_stride_batch, parents_stride_token;
  void* windows; /* [nwindows, window_tokens, dim, width-1], written: the inputs after each token */
  int64_t windows_stride_entry, windows_stride_token, windows_stride_channel, windows_stride_tap;
  const int32_t* window_entries; /* [batch], unique, or NULL: the slot that the state is read from */
  void* out; /* as x, written; zero for padding; may be x itself in a chain. CUDA: what the CPU refuses is padding */
  int64_t out_stride_batch, out_stride_channel, out_stride_token;
} llamba_causal_conv1d_update_args;

LLAMBA_API int llamba_causal_conv1d_update_cpu(const llamba_causal_conv1d_update_args* args);
LLAMBA_API int llamba_causal_conv1d_update_cuda(const llamba_causal_conv1d_update_args* args, void* stream);

/* ---- checkpointing_ssu: verify a window from an old state and a ring of the inputs since -----------------------
 *   dt = softplus(dt + dt_bias);   state = exp(dt A) state + (dt x) B;   out = (state . C + D x) silu(z)
 * The state of slot s is that before its `previous` oldest inputs, which are rows start, start + 1, ... of its rings,
 * modulo their length. The tokens of a call are appended to them; if previous + tokens > window, the state first moves
 * past the previous ones and is stored. start and previous are the caller's to advance: afterwards previous is as many
 * of the call's tokens as are accepted, and, if the state was not stored, the previous ones more; if it was, start
 * moves on by what previous was. */

typedef struct {
  size_t size;
  llamba_dtype dtype;                                  /* x, B, C, z, out, x_cache, B_cache */
  llamba_dtype state_dtype;                            /* state; of 16 bits: rounded before it is gone on from */
  llamba_dtype dt_dtype, A_dtype, D_dtype, bias_dtype; /* bias_dtype: dt_bias */
  int64_t batch;                                       /* >= 0 */
  int64_t ntokens;                                     /* >= 0: of every sequence; with cu_seqlens: of all together */
  int64_t nslots;                                      /* >= 0 */
  int64_t pad_slot;                                    /* sequences of this slot are padding, as those of slots < 0 */
  int32_t nheads, headdim;                             /* >= 1 */
  int32_t dstate;                                      /* a multiple of 16 up to 256 */
  int32_t ngroups;                                     /* divides nheads */
  int32_t ring;                                        /* rows of a ring: >= previous + tokens of every sequence */
  int32_t window;                                      /* 0 to ring; at most ring - window tokens are one sequence's */
  int32_t dt_softplus;                                 /* 0: dt is taken as it is */
  int32_t slots_are_int64;
  void* state; /* [nslots, nheads, headdim, dstate], in/out */
  int64_t state_stride_slot, state_stride_head, state_stride_dim;
  void* x_cache; /* [nslots, nheads, ring, headdim], in/out */
  int64_t x_cache_stride_slot, x_cache_stride_head, x_cache_stride_row;
  void* B_cache; /* [nslots, ngroups, ring, dstate], in/out */
  int64_t B_cache_stride_slot, B_cache_stride_group, B_cache_stride_row;
  float* dt_cache; /* [nslots, nheads, ring], in/out: after bias and softplus */
  int64_t dt_cache_stride_slot, dt_cache_stride_head, dt_cache_stride_row;
  const int32_t* start;    /* [nslots], 0 to ring - 1 */
  const int32_t* previous; /* [nslots], >= 0 */
  const void* x;           /* [batch, ntokens, nheads, headdim] */
  int64_t x_stride_batch, x_stride_token, x_stride_head;
  const void* dt; /* [batch, ntokens, nheads] */
  int64_t dt_stride_batch, dt_stride_token, dt_stride_head;
  const void* A; /* [nheads] */
  int64_t A_stride_head;
  const void* B; /* [batch, ntokens, ngroups, dstate] */
  int64_t B_stride_batch, B_stride_token, B_stride_group;
  const void* C; /* [batch, ntokens, ngroups, dstate] */
  int64_t C_stride_batch, C_stride_token, C_stride_group;
  const void* D; /* [nheads, headdim] or NULL: zero */
  int64_t D_stride_head, D_stride_dim;
  const void* z; /* [batch, ntokens, nheads, headdim] or NULL: no gate */
  int64_t z_stride_batch, z_stride_token, z_stride_head;
  const void* dt_bias; /* [nheads] or NULL: zero */
  int64_t dt_bias_stride_head;
  const void* slots; /* [batch] int32 or int64, unique, or NULL: 0, 1, 2, ... */
  int64_t slots_stride;
  const int32_t* cu_seqlens; /* [batch + 1], not descending, 0 to ntokens, or NULL */
  void* out; /* [batch, ntokens, nheads, headdim], written; zero for padding. CUDA: what the CPU refuses is padding */
  int64_t out_stride_batch, out_stride_token, out_stride_head;
} llamba_checkpointing_ssu_args;

LLAMBA_API int llamba_checkpointing_ssu_cpu(const llamba_checkpointing_ssu_args* args);
LLAMBA_API int llamba_checkpointing_ssu_cuda(const llamba_checkpointing_ssu_args* args, void* stream);

#ifdef __cplusplus
}
#endif
#endif /* LLAMBA_H_ */
