/* One Adafactor step of a stack of matrices on a CPU; adafactor_cpu.py builds and calls it, adafactor.py has the formulas.

   L layers, R rows, C columns. Each pass over a layer's gradient reads it from the cache if the layer fits there, and
   no array of a parameter's size is written but the parameter and its first moment. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#define EPS 1e-30f            /* adafactor.py: _EPS */
#define SMALLEST_SCALE 1e-3f  /* adafactor.py: _SMALLEST_PARAMETER_SCALE */
#define LARGEST 127.0f        /* int8.py */

static inline float larger(float a, float b) { return a > b ? a : b; }

/* torch.lerp, which is exact at both ends */
static inline float lerp(float from, float to, float weight) {
    return weight < 0.5f ? from + weight * (to - from) : to - (to - from) * (1 - weight);
}

static inline float scale_of(float largest) {
    float scale = largest * (1 / LARGEST);
    return scale >= FLT_MIN ? scale : 0;
}

static inline int8_t level_of(float m, float inverse) {
    float level = rintf(m * inverse);
    level = level < -LARGEST ? -LARGEST : level;
    return (int8_t)(int)(level > LARGEST ? LARGEST : level);
}

/* Passes over ROWS rows at once, or one: what belongs to a column is then loaded once for all of them, which is worth a
   third of the time. `n` has to be a constant where they are called. */
#define ROWS 4

/* Adds squared gradients to the sums of their columns; their sums of rows go to `row_sums`. */
static inline __attribute__((always_inline)) void square(
    const int n, int64_t cols, const float *g, float *column_sums, float *row_sums) {
    float a = 0, b = 0, c = 0, d = 0;
    #pragma omp simd reduction(+ : a, b, c, d)
    for (int64_t j = 0; j < cols; j++) {
        const float first = g[j] * g[j] + EPS;
        float column = first;
        a += first;
        if (n == ROWS) {
            const float second = g[cols + j] * g[cols + j] + EPS, third = g[2 * cols + j] * g[2 * cols + j] + EPS;
            const float fourth = g[3 * cols + j] * g[3 * cols + j] + EPS;
            b += second;
            c += third;
            d += fourth;
            column += second + third + fourth;
        }
        column_sums[j] += column;
    }
    const float sums[ROWS] = {a, b, c, d};
    for (int r = 0; r < n; r++) row_sums[r] = sums[r];
}

/* The sum of squares of an update. */
static inline __attribute__((always_inline)) float squared_update(
    const int n, int64_t cols, const float *g, const float *row_factor, const float *col_factor) {
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < cols; j++) {
        float rows = 0;
        for (int r = 0; r < n; r++) {
            const float u = g[r * cols + j] * row_factor[r];
            rows += u * u;
        }
        sum += rows * col_factor[j] * col_factor[j];
    }
    return sum;
}

/* Of int8 with one scale a column: the largest magnitude of each. */

static inline __attribute__((always_inline)) void widen(
    const int n, int64_t cols, const float *g, const int8_t *q, const float *row_factor, const float *col_factor,
    const float *old_scale, float *largest) {
    #pragma omp simd
    for (int64_t j = 0; j < cols; j++) {
        float most = largest[j];
        for (int r = 0; r < n; r++)
            most = larger(fabsf(g[r * cols + j] * row_factor[r] * col_factor[j] + q[r * cols + j] * old_scale[j]), most);
        largest[j] = most;
    }
}

/* Updates parameters and int8 values; the sum of squares of what was subtracted. */
static inline __attribute__((always_inline)) float apply(
    const int n, int64_t cols, float *p, const float *g, int8_t *q, const float *row_factor, const float *col_factor,
    const float *old_scale, const float *inverse, float decay) {
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < cols; j++) {
        for (int r = 0; r < n; r++) {
            const int64_t k = r * cols + j;
            const float m = g[k] * row_factor[r] * col_factor[j] + q[k] * old_scale[j], decrease = m + p[k] * decay;
            q[k] = level_of(m, inverse[j]);
            p[k] -= decrease;
            sum += decrease * decrease;
        }
    }
    return sum;
}

/* Updates one stack in place; 0, or 1 where memory for 4 (threads + 4) (R + C) bytes is missing, and nothing changed.

   params, grads: float32 [L, R, C].
   levels, scales: int8 [L, R, C] and float32 [L, C], or [L, R] with scale_per_row; NULL for no int8 moment.
   moments: float32 [L, R, C]; NULL for none of float32.
   v_row, v_col: float32 [L, R], [L, C].
   squared_norms: float64 [L], of what is subtracted from each layer.
   decay: learning rate times weight decay. clip: of the update's RMS; infinity never clips. */
int adafactor_step(
    int64_t layers, int64_t rows, int64_t cols, int scale_per_row, int scale_by_parameter, int num_threads,
    float *params, const float *grads, int8_t *levels, float *scales, float *moments, float *v_row, float *v_col,
    double *squared_norms, float beta1, float new_weight, float learning_rate, float decay, float clip) {
    float *memory = malloc(sizeof(float) * (rows + (num_threads + 3) * cols));
    double *sums = malloc(sizeof(double) * 3 * num_threads);
    if (!memory || !sums) { free(memory); free(sums); return 1; }
    float *row_factor = memory, *col_factor = memory + rows, *old_scale = col_factor + cols;
    float *inverse = old_scale + cols, *partial = inverse + cols;

    /* The arrays of columns fit the first cache where there are few, and one stream of memory is faster than four. */
    const int many_columns = cols > 1024;

    #pragma omp parallel num_threads(num_threads)
    for (int64_t layer = 0; layer < layers; layer++) {
        const int64_t offset = layer * rows * cols;
        const float *g = grads + offset;
        float *p = params + offset, *row = v_row + layer * rows, *col = v_col + layer * cols;
        float *m = moments ? moments + offset : NULL;
        int8_t *q = levels ? levels + offset : NULL;
        float *scale = scales ? scales + layer * (scale_per_row ? rows : cols) : NULL;
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        const int64_t begin = rows * thread / threads, end = rows * (thread + 1) / threads;
        float *own = partial + thread * cols;

        /* second moments */
        memset(own, 0, sizeof(float) * cols);
        for (int64_t i = begin; i < end;) {
            const int at_once = many_columns && i + ROWS <= end ? ROWS : 1;
            float sums[ROWS];
            if (at_once == ROWS) square(ROWS, cols, g + i * cols, own, sums);
            else square(1, cols, g + i * cols, own, sums);
            for (int r = 0; r < at_once; r++) row[i + r] = lerp(row[i + r], sums[r] / cols, new_weight);
            i += at_once;
        }
        #pragma omp barrier
        #pragma omp for
        for (int64_t j = 0; j < cols; j++) {
            float sum = 0;
            for (int k = 0; k < threads; k++) sum += partial[k * cols + j];
            col[j] = lerp(col[j], sum / rows, new_weight);
            col_factor[j] = 1 / sqrtf(col[j]);
            if (q && !scale_per_row) old_scale[j] = beta1 * scale[j];
        }
        double row_sum = 0;
        for (int64_t i = 0; i < rows; i++) row_sum += row[i];
        for (int64_t i = begin; i < end; i++) row_factor[i] = 1 / sqrtf(row[i] / (float)(row_sum / rows));

        /* the learning rate after parameter scaling and update clipping */
        double update = 0, squared_params = 0;
        int64_t i = begin;
        for (; many_columns && i + ROWS <= end; i += ROWS)
            update += squared_update(ROWS, cols, g + i * cols, row_factor + i, col_factor);
        for (; i < end; i++) update += squared_update(1, cols, g + i * cols, row_factor + i, col_factor);
        if (scale_by_parameter) {
            for (i = begin; i < end; i++) {
                float sum = 0;
                #pragma omp simd reduction(+ : sum)
                for (int64_t j = 0; j < cols; j++) sum += p[i * cols + j] * p[i * cols + j];
                squared_params += sum;
            }
        }
        sums[3 * thread] = update;
        sums[3 * thread + 1] = squared_params;
        #pragma omp barrier
        double total = 0, total_params = 0;
        for (int k = 0; k < threads; k++) { total += sums[3 * k]; total_params += sums[3 * k + 1]; }
        float size = learning_rate;
        if (scale_by_parameter) size *= larger(sqrt(total_params / (rows * cols)), SMALLEST_SCALE);
        size /= larger((float)sqrt(total / (rows * cols)) / clip, 1);

        /* parameters and first moments */
        for (int64_t i = begin; i < end; i++) row_factor[i] *= (1 - beta1) * size;

        /* one scale a column needs the largest magnitude of all rows first */
        if (q && !scale_per_row) {
            memset(own, 0, sizeof(float) * cols);
            for (i = begin; many_columns && i + ROWS <= end; i += ROWS)
                widen(ROWS, cols, g + i * cols, q + i * cols, row_factor + i, col_factor, old_scale, own);
            for (; i < end; i++)
                widen(1, cols, g + i * cols, q + i * cols, row_factor + i, col_factor, old_scale, own);
            #pragma omp barrier
            #pragma omp for
            for (int64_t j = 0; j < cols; j++) {
                float largest = 0;
                for (int k = 0; k < threads; k++) largest = larger(partial[k * cols + j], largest);
                scale[j] = scale_of(largest);
                inverse[j] = scale[j] > 0 ? 1 / scale[j] : 0;
            }
        }

        /* parameters and first moments */
        double squared_decrease = 0;
        for (int64_t i = begin; i < end; i++) {
            if (q && !scale_per_row) {
                const int at_once = many_columns && i + ROWS <= end;
                float *pi = p + i * cols;
                squared_decrease += at_once
                    ? apply(ROWS, cols, pi, g + i * cols, q + i * cols, row_factor + i, col_factor, old_scale, inverse, decay)
                    : apply(1, cols, pi, g + i * cols, q + i * cols, row_factor + i, col_factor, old_scale, inverse, decay);
                i += at_once ? ROWS - 1 : 0;
                continue;
            }
            const float *gi = g + i * cols, factor = row_factor[i];
            float *pi = p + i * cols, sum = 0;
            if (q) {
                int8_t *qi = q + i * cols;
                const float old = beta1 * scale[i];
                float largest = 0;
                #pragma omp simd reduction(max : largest)
                for (int64_t j = 0; j < cols; j++) {
                    const float magnitude = fabsf(gi[j] * factor * col_factor[j] + qi[j] * old);
                    largest = magnitude > largest ? magnitude : largest;
                }
                scale[i] = scale_of(largest);
                const float inverse_i = scale[i] > 0 ? 1 / scale[i] : 0;
                #pragma omp simd reduction(+ : sum)
                for (int64_t j = 0; j < cols; j++) {
                    const float mj = gi[j] * factor * col_factor[j] + qi[j] * old, decrease = mj + pi[j] * decay;
                    qi[j] = level_of(mj, inverse_i);
                    pi[j] -= decrease;
                    sum += decrease * decrease;
                }
            } else if (m) {
                float *mi = m + i * cols;
                #pragma omp simd reduction(+ : sum)
                for (int64_t j = 0; j < cols; j++) {
                    const float mj = gi[j] * factor * col_factor[j] + beta1 * mi[j], decrease = mj + pi[j] * decay;
                    mi[j] = mj;
                    pi[j] -= decrease;
                    sum += decrease * decrease;
                }
            } else {
                #pragma omp simd reduction(+ : sum)
                for (int64_t j = 0; j < cols; j++) {
                    const float decrease = gi[j] * factor * col_factor[j] + pi[j] * decay;
                    pi[j] -= decrease;
                    sum += decrease * decrease;
                }
            }
            squared_decrease += sum;
        }
        sums[3 * thread + 2] = squared_decrease;
        #pragma omp barrier
        if (thread == 0) {
            double sum = 0;
            for (int k = 0; k < threads; k++) sum += sums[3 * k + 2];
            squared_norms[layer] = sum;
        }
    }
    free(memory);
    free(sums);
    return 0;
}
