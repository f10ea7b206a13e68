/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.core

/** Keeps values by their identifier and answers queries about them. */
interface Store<K : Any, V : Any> {
    /** Finds the value with the identifier. */
    fun findById(id: K): Outcome<V>

    /** Lists every value in the order in which it was added. */
    fun listAll(): List<V>

    /** Lists the values that pass the test. */
    fun listWhere(test: (V) -> Boolean): List<V>

    /** Counts the values that pass the test. */
    fun countWhere(test: (V) -> Boolean): Int

    /** Adds a new value and refuses when its identifier is already taken. */
    fun add(value: V): Outcome<V>

    /** Replaces a known value and refuses when its identifier is unknown. */
    fun replace(value: V): Outcome<V>

    /** Removes the value with the identifier and hands it back. */
    fun remove(id: K): Outcome<V>
}

/** Changes one stored value in place. */
inline fun <K : Any, V : Any> Store<K, V>.change(id: K, change: (V) -> V): Outcome<V> =
    findById(id).then { replace(change(it)) }

/** Keeps values in a map that remembers the order of insertion. */
open class InMemoryStore<K : Any, V : Any>(
    private val kind: String,
    private val idOf: (V) -> K,
) : Store<K, V> {
    private val values = LinkedHashMap<K, V>()

    override fun findById(id: K): Outcome<V> = requireFound(values[id]) { "no $kind $id" }

    override fun listAll(): List<V> = values.values.toList()

    override fun listWhere(test: (V) -> Boolean): List<V> = values.values.filter(test)

    override fun countWhere(test: (V) -> Boolean): Int = values.values.count(test)

    override fun add(value: V): Outcome<V> {
        val id = idOf(value)
        return requireThat(id !in values, Reason.DUPLICATE) { "$kind $id is already known" }
            .then { keep(id, value) }
    }

    override fun replace(value: V): Outcome<V> {
        val id = idOf(value)
        return findById(id).then { keep(id, value) }
    }

    override fun remove(id: K): Outcome<V> = findById(id).onDone { values.remove(id) }

    private fun keep(id: K, value: V): Outcome<V> {
        values[id] = value
        return done(value)
    }
}
